#!/usr/bin/env python3
"""Do LLaVolta's schedules save and hold on clips? `python benchmarks/llavolta_clips.py`.

The start is the embedded model for clips, moved to 16 tokens per frame, which it was not trained for. Each run trains
its decoder on the same clips under another schedule of specs (arXiv 2406.20092) and is then asked about test clips,
dense and under what the published model is used under. Frames are encoded once for all runs.

Every run is one file in --runs and is skipped when that exists. The result is docs/measured/llavolta-clips.json, from
which `python docs/make.py llavolta` makes a part of docs/llavolta.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _common import say
from clips import prompts, test_clips
from torch import Tensor

import foveate
from foveate.bench.answers import Asker, Prompts, joined
from foveate.bench.configurations import DENSE
from foveate.bench.environment import environment
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.costmodel import cost, read_model
from foveate.embedded.clips import CLIP_PATH, ClipProcessor
from foveate.engine import Encoded
from foveate.engine.images import encoder_outputs
from foveate.files import write_json
from foveate.scenes import CLIP_KINDS, Clip, clip
from foveate.spec import Spec, as_spec
from foveate.train.timetable import published

ROOT = Path(__file__).parents[1]
SCHEDULES = ("single", "two-compression", "last-stage-compression")
STRIDE, SIDE, LAYERS = 6, 24, 12
LIGHT = published("last-stage-compression", LAYERS)[-1].spec
"""What the published model is used under."""
TESTS = {"single": ("dense", LIGHT), "two-compression": ("dense",), "last-stage-compression": (LIGHT, "dense")}
"""What each model is asked under; first its own last setting."""


def main() -> int:
    """Make what is missing, and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each run")
    parser.add_argument("--batch", type=int, default=8, help="questions of a step")
    parser.add_argument("--clips", type=int, default=60, help="training clips of each kind")
    parser.add_argument("--test-clips", type=int, default=30, help="test clips of each kind")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "llavolta-clips")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "llavolta-clips.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.runs.mkdir(parents=True, exist_ok=True)
    model, asker = start()
    test = list(test_clips(given.test_clips, given.frames))
    train = [clip(seed, frames=given.frames, kind=kind) for seed in range(given.clips) for kind in CLIP_KINDS]
    shown = {"test": encoded(asker, test, "test"), "train": encoded(asker, train, "training")}
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    for schedule in ("start", *SCHEDULES):
        target = given.runs / f"{schedule}.json"
        if target.exists():
            continue
        model.load_state_dict(begin)
        losses = [] if schedule == "start" else trained(asker, train, *shown["train"], schedule, given)
        model.eval()
        tests = {spec: right(asker, test, *shown["test"], spec) for spec in TESTS.get(schedule, ("dense", LIGHT))}
        write_json(target, {"losses": losses, "tests": tests})
        say(f"made {schedule}: " + ", ".join(f"{spec} {share(found):.1%}" for spec, found in tests.items()))
    write_json(given.out, summary(test, given))
    say(f"wrote {given.out}")
    return 0


def start() -> tuple[Any, Asker]:
    """Return the embedded model for clips with fewer tokens per frame, and what asks it."""
    from transformers import AutoConfig, LlavaNextVideoForConditionalGeneration

    config: Any = AutoConfig.from_pretrained(CLIP_PATH, local_files_only=True)
    config.spatial_pool_stride = STRIDE
    model: Any = LlavaNextVideoForConditionalGeneration.from_pretrained(
        CLIP_PATH, config=config, dtype=torch.float32, local_files_only=True
    )
    return model, Asker(model.eval(), ClipProcessor(CLIP_PATH, (SIDE // STRIDE) ** 2), longest=4)


def encoded(asker: Asker, clips: Sequence[Clip], what: str) -> tuple[list[Prompts], list[Encoded]]:
    """Return the prompts of clips, and each clip encoded."""
    asked, found = [prompts(asker, one) for one in clips], []
    for number, each in enumerate(asked):
        with torch.no_grad():
            found.append(asker.encode([each], [DENSE]))
        if (number + 1) % 10 == 0:
            say(f"encoded {number + 1} of {len(clips)} {what} clips")
    return asked, found


def trained(
    asker: Asker, clips: Sequence[Clip], asked: list[Prompts], seen: list[Encoded], schedule: str, given: Any
) -> list[float]:
    """Train the decoder under the stages of a schedule; return the loss of each step."""
    model: Any = asker.model
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, given.lr, weight_decay=0.0)
    stages = published(schedule, LAYERS)
    rng, losses = random.Random(given.seed), []
    for step in range(given.steps):
        spec = named(stages[step * len(stages) // given.steps].spec)
        for group in optimiser.param_groups:
            group["lr"] = given.lr * 0.5 * (1 + math.cos(math.pi * step / given.steps))
        chosen = [rng.randrange(len(clips)) for _ in range(given.batch)]
        inputs = rows(asker, clips, asked, chosen, rng)
        # Each row of the batch has a clip of its own.
        picked = joined([seen[number] for number in chosen])
        with foveate.apply(model, spec) if spec.steps else nullcontext():
            loss = model(**inputs, mm_encoder_outputs=encoder_outputs(model, picked)).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(round(float(loss.detach()), 4))
        if (step + 1) % 10 == 0:
            say(f"{schedule}: step {step + 1} of {given.steps}, loss {sum(losses[-10:]) / 10:.3f}")
    return losses


def rows(
    asker: Asker, clips: Sequence[Clip], asked: Sequence[Prompts], chosen: Sequence[int], rng: random.Random
) -> dict[str, Tensor]:
    """Return one question about each clip with its answer, padded on the left, and labels on the answers."""
    tokenizer, texts, answers = asker.processor.tokenizer, [], []
    for number in chosen:
        question = rng.randrange(len(clips[number].questions))
        answer = tokenizer(clips[number].questions[question].answer, add_special_tokens=False)["input_ids"]
        answers.append([*answer, tokenizer.eos_token_id])
        texts.append([*asked[number].rows[question], *answers[-1]])
    inputs = asker.padded(texts)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        labels[row, -len(answer) :] = torch.tensor(answer)
    return {**inputs, "labels": labels}


def right(asker: Asker, clips: Sequence[Clip], asked: list[Prompts], seen: list[Encoded], spec: str) -> list[list[int]]:
    """Return per clip and question whether the answer is exactly right."""
    found = []
    with torch.inference_mode():
        for begin in range(0, len(clips), 10):
            part = slice(begin, begin + 10)
            said = asker.answer(asked[part], named(spec), joined(seen[part]))
            for texts, one in zip(said.texts, clips[part], strict=True):
                found.append([int(t.strip() == q.answer) for t, q in zip(texts, one.questions, strict=True)])
    return found


def named(spec: str) -> Spec:
    """Read a spec, or "dense"."""
    return DENSE if spec == "dense" else as_spec(spec)


def share(found: Sequence[Sequence[int]]) -> float:
    """Return the share of right answers."""
    flat = [each for one in found for each in one]
    return sum(flat) / len(flat)


def summary(test: Sequence[Clip], given: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy of each model under its tests, differences from the dense run, and saved FLOPs."""
    made = {name: json.loads((given.runs / f"{name}.json").read_text()) for name in ("start", *SCHEDULES)}
    owners = [one.id for one in test for _ in one.questions]

    def flat(name: str, spec: str) -> list[float]:
        return [float(each) for one in made[name]["tests"][spec] for each in one]

    rows = [
        {
            "schedule": name,
            "tests": {
                spec: {
                    "accuracy": mean_interval(flat(name, spec), owners).to_dict(),
                    "over_single": difference_interval(flat(name, spec), flat("single", "dense"), owners).to_dict(),
                }
                for spec in each["tests"]
            },
            **({"flops": flops(name, given.frames)} if name != "start" else {}),
            "first_losses": each["losses"][:5],
            "last_losses": each["losses"][-5:],
        }
        for name, each in made.items()
    ]
    names = ("steps", "batch", "clips", "test_clips", "frames", "lr", "seed")
    return {
        "setting": {name: getattr(given, name) for name in names},
        "questions": len(owners),
        "tokens": given.frames * (SIDE // STRIDE) ** 2,
        "light": LIGHT,
        "rows": rows,
        "environment": environment(torch.device("cpu"), 0.0),
    }


def flops(schedule: str, frames: int) -> float:
    """Return FLOPs of the decoder over all stages of a schedule, as a share of those of a dense run."""
    config: Any = json.loads((CLIP_PATH / "config.json").read_text())
    shapes = read_model(config | {"spatial_pool_stride": STRIDE})
    call: dict[str, Any] = {"images": (), "clips": [(frames, 192, 192)], "text_tokens": 20, "new_tokens": 1}

    def prefill(spec: str) -> float:
        return cost(shapes, None if spec == "dense" else spec, **call).part("prefill").flops

    stages = published(schedule, LAYERS)
    return sum(prefill(stage.spec) for stage in stages) / len(stages) / prefill("dense")


if __name__ == "__main__":
    raise SystemExit(main())
