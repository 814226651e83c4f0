#!/usr/bin/env python3
"""Measure what fewer tokens of clips cost in accuracy: `python benchmarks/clips.py`.

Asks the embedded model for clips about generated clips (`foveate.scenes.clip`) under methods for clips, methods for
images and baselines, at equal numbers of tokens; all answer the same questions. Controls: the dense model on the same
frames in another order, and answers without looking.

Clips are answered in chunks, each with its own file in the model's folder under --runs, so an interrupted run goes on.
The result is docs/measured/clips.json, from which `python docs/make.py clips` makes the tables of docs/video.md.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import say

from foveate.bench.answers import Asker, Prompts
from foveate.bench.configurations import DENSE
from foveate.bench.environment import environment
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.embedded.clips import CLIP_PATH, clip_reference
from foveate.engine import Encoded
from foveate.errors import FoveateError
from foveate.files import write_json
from foveate.fingerprint import model_fingerprint
from foveate.scenes import CLIP_KINDS, CLIP_SKILLS, Clip, clip, question_only_floor
from foveate.spec import as_spec

ROOT = Path(__file__).parents[1]
CHUNK = 10
"""Clips that are encoded and answered together: two of each kind."""
BUDGETS = (144, 72, 36)
TEMPORAL = ("evs:{}", "dycoke:{}", "fastvid:{}", "prunevid:{}")
FOR_IMAGES = ("cls:{}", "cluster:{}", "divprune:{}", "cluster:{each}:per=frame")
BASELINES = ("frames:{}:positions=pack", "stride3d:{}", "pool3d:{}", "random:{}")
RIVAL = "frames:{}:positions=pack"
"""What a clip of fewer frames is: every method must beat it."""
FLOOR_CLIPS = 150
"""Training clips of each kind that answers without looking are taken from."""


def main() -> int:
    """Answer what is missing, and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CLIP_PATH, help="a directory that the recipe made")
    parser.add_argument("--clips", type=int, default=20, help="test clips of each kind")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--dense", action="store_true", help="the dense model and its control alone")
    parser.add_argument("--specs", nargs="*", help="these instead; {} stands for a budget, {each} for that of a frame")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "clips-answers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "clips.json")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, processor = clip_reference(arguments.model)
    asker = Asker(model, processor, longest=4)
    templates = () if arguments.dense else arguments.specs or (*TEMPORAL, *FOR_IMAGES, *BASELINES)
    arguments.runs /= model_fingerprint(model.model)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    clips = list(test_clips(arguments.clips, arguments.frames))
    for number in range(0, len(clips), CHUNK):
        chunk = clips[number : number + CHUNK]
        target = arguments.runs / f"{arguments.frames}-{number // CHUNK:04d}.json"
        found = json.loads(target.read_text()) if target.exists() else {}
        missing = [name for name in budgets(templates, arguments.frames) if name not in found]
        if missing or not found:
            found |= answer(asker, chunk, missing)
            write_json(target, found)
            say(f"{number + len(chunk)} of {len(clips)} clips")
    write_json(arguments.out, summary(clips, arguments, budgets(templates, arguments.frames)))
    say(f"wrote {arguments.out}")
    return 0


def budgets(templates: Iterable[str], frames: int) -> dict[str, int]:
    """Return the budget of each spec, in tokens of a clip."""
    return {name.format(budget, each=budget // frames): budget for name in templates for budget in BUDGETS}


def test_clips(count: int, frames: int) -> Iterable[Clip]:
    """Yield test clips, the kinds in turns, so that any number of them holds all kinds."""
    for seed in range(count):
        for kind in CLIP_KINDS:
            yield clip(seed, split="test", frames=frames, kind=kind)


def prompts(asker: Asker, one: Clip) -> Prompts:
    """Return the prompts of all questions about a clip."""
    processor: Any = asker.processor
    rows: list[tuple[int, ...]] = []
    pixels: dict[str, Any] = {}
    for question in one.questions:
        turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        if not rows:
            inputs = processor(text, [one.frames])
            pixels = {"pixel_values_videos": inputs.pop("pixel_values_videos")}
            whole = inputs["input_ids"][0].tolist()
            shared = len(whole) - whole[::-1].index(asker.model.config.video_token_id)
        ids = processor.tokenizer(text)["input_ids"]
        at = ids.index(asker.model.config.video_token_id)
        rows.append((*whole[:shared], *ids[at + 1 :]))
    return Prompts(pixels, tuple(rows), shared)


def shuffled(encoded: Encoded, clips: Sequence[Clip]) -> Encoded:
    """Return encoded clips with their frames in the order of the control; frames are encoded alone."""
    out = []
    for one, tokens in zip(clips, encoded.projected, strict=True):
        order = list(range(len(one.frames)))
        rng = random.Random(f"shuffled frames {one.id}")
        while order == sorted(order):
            rng.shuffle(order)
        out.append(tokens.unflatten(0, (len(order), -1))[order].flatten(0, 1))
    return replace(encoded, projected=tuple(out))


def answer(asker: Asker, clips: Sequence[Clip], specs: Sequence[str]) -> dict[str, Any]:
    """Answer all questions about clips: per spec its tokens, and per clip and question whether it is right."""
    read, found = {}, {}
    asked = [prompts(asker, one) for one in clips]
    layout = asker.family.clip_layouts(asked[0].pixels)[0]
    for name in specs:
        spec = as_spec(name)
        try:
            spec.steps[0].method.count(layout)
        except FoveateError as error:
            found[name] = {"refused": str(error)}
        else:
            read[name] = spec
    with torch.inference_mode():
        encoded = asker.encode(asked, [DENSE, *read.values()])
    for name, spec, seen in [
        ("dense", DENSE, encoded),
        ("shuffled", DENSE, shuffled(encoded, clips)),
        *((name, spec, encoded) for name, spec in read.items()),
    ]:
        said = asker.answer(asked, spec, seen)
        right = [
            [text.strip() == question.answer for text, question in zip(texts, one.questions, strict=True)]
            for texts, one in zip(said.texts, clips, strict=True)
        ]
        found[name] = {"tokens": sum(said.after) / len(clips), "right": right}
    return found


def summary(clips: Sequence[Clip], arguments: argparse.Namespace, wanted: Mapping[str, int]) -> dict[str, Any]:
    """Return accuracy with intervals of everything that was answered for all clips, and paired differences."""
    found: dict[str, list[Any]] = defaultdict(list)
    chunks = sorted(arguments.runs.glob(f"{arguments.frames}-*.json"))[: -(-len(clips) // CHUNK)]
    for chunk in chunks:
        for name, each in json.loads(chunk.read_text()).items():
            found[name].append(each)
    whole = {name: parts for name, parts in found.items() if len(parts) == len(chunks)}
    questions = [(one, question) for one in clips for question in one.questions]
    clusters = [one.id for one, _ in questions]
    scores = {
        name: [float(right) for part in parts for one in part["right"] for right in one]
        for name, parts in whole.items()
        if all("right" in part for part in parts)
    }
    known = (
        question
        for kind in CLIP_KINDS
        for seed in range(FLOOR_CLIPS)
        for question in clip(seed, frames=arguments.frames, kind=kind).questions
    )
    rows = []
    for name, values in scores.items():
        row: dict[str, Any] = {
            "what": name,
            "tokens": sum(part["tokens"] * len(part["right"]) for part in whole[name]) / len(clips),
            "accuracy": mean_interval(values, clusters).to_dict(),
            "skills": by_skill(questions, values),
        }
        if name != "dense":
            row["over_dense"] = difference_interval(values, scores["dense"], clusters).to_dict()
        if name in wanted:
            row["budget"] = wanted[name]
        rival = RIVAL.format(wanted.get(name))
        if rival in scores and rival != name:
            row["over_frames"] = difference_interval(values, scores[rival], clusters).to_dict()
        rows.append(row)
    return {
        "model": arguments.runs.name,
        "frames": arguments.frames,
        "clips": len(clips),
        "questions": len(questions),
        "by_skill": {skill: sum(q.skill == skill for _, q in questions) for skill in CLIP_SKILLS},
        "floor": question_only_floor(known, (question for _, question in questions)),
        "budgets": list(BUDGETS),
        "refused": {
            name: {"budget": wanted.get(name), "why": parts[0]["refused"]}
            for name, parts in whole.items()
            if "refused" in parts[0]
        },
        "rows": rows,
        "environment": environment(torch.device("cpu"), 0.0),
    }


def by_skill(questions: Sequence[tuple[Clip, Any]], values: Sequence[float]) -> Mapping[str, float]:
    """Return the accuracy of each skill."""
    own: dict[str, list[float]] = defaultdict(list)
    for (_, question), value in zip(questions, values, strict=True):
        own[question.skill].append(value)
    return {skill: sum(own[skill]) / len(own[skill]) for skill in CLIP_SKILLS if skill in own}


if __name__ == "__main__":
    raise SystemExit(main())
