#!/usr/bin/env python3
"""Is training under compression in stages cheaper, and as good? `timeout 590 python benchmarks/llavolta.py`.

One start, the embedded model moved to 144 visual tokens per image, which it was not trained for; one set of
conversations; one number of optimiser steps. Each run trains it under another schedule of specs (LLaVolta,
arXiv 2406.20092) and is then asked the questions of the fixed test set, without compression and under specs inside
the decoder. The encoder is frozen and runs once per image for all runs.

Killed or timed out at any moment, the same command goes on where it was: runs at their last checkpoint, tests at the
next spec. Each run is one JSON in its folder; all that there is goes to --report after every run, and what a report of
this setting holds is not made again, so a run may go on on another machine. `--steps 600` trains ten times as long.
`--full` trains with all 576 tokens and the encoder in every step, which is for a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _common import CLOCKS, link_features, say
from torch import nn

import foveate
from foveate.bench import scenes
from foveate.bench.answers import Asker
from foveate.bench.environment import environment
from foveate.bench.statistics import mean_interval
from foveate.bench.tasks import Task, normalised
from foveate.commands.output import silence_transformers
from foveate.engine import encode
from foveate.families import family_of
from foveate.files import write_json
from foveate.loading import load_model, load_processor
from foveate.spec import Spec, parse
from foveate.train.batches import Batches, inputs_of
from foveate.train.estimate import stage_flops
from foveate.train.objectives import parse_recipe
from foveate.train.parameters import choose_parameters
from foveate.train.prepared import prepare
from foveate.train.recipe import Recipe
from foveate.train.run import run
from foveate.train.settings import DENSE
from foveate.train.timetable import published

LAYERS = 12
LIGHT = published("last-stage-compression", LAYERS)[-1].spec
"""What the published model is used under: `pool:0.25` at the middle of the decoder."""
HEAVY = published("two-compression", LAYERS)[0].spec
"""`pool:0.125` at the sixteenth part of the decoder, where the paper compares pooling with clustering."""
CLUSTER = HEAVY.replace("pool", "cluster")

SCHEDULES: dict[str, list[dict[str, Any]] | str] = {
    **{name: name for name in ("single", "two-compression", "last-stage-compression")},
    "always-pool": [{"share": 1, "spec": HEAVY}],
    "always-cluster": [{"share": 1, "spec": CLUSTER}],
    **{name: name for name in ("three-deeper", "three-wider", "four-wider-deeper", "four-deeper-wider")},
}

RUNS: tuple[tuple[str, int], ...] = (
    ("single", 1),
    ("last-stage-compression", 1),
    ("two-compression", 1),
    ("always-pool", 1),
    ("always-cluster", 1),
    *((name, seed) for seed in (2, 3) for name in ("single", "last-stage-compression", "two-compression")),
    *((name, 1) for name in ("three-deeper", "three-wider", "four-wider-deeper", "four-deeper-wider")),
    *((name, seed) for seed in (2, 3) for name in ("always-pool", "always-cluster")),
)
"""Every run, in the order they are made: schedule and seed."""


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    features: str | None
    scenes: int
    steps: int
    batch: int
    per_device: int
    lr: float
    precision: str = "bf16"

    def recipe(self, stages: Any, seed: int, precision: str | None = None) -> Recipe:
        """The recipe of one run."""
        data: dict[str, Any] = {"scenes": self.scenes, "turns": 8, "first_scene": 1_000_000}
        if self.features is not None:
            data["features"] = self.features
        return parse_recipe(
            {
                "stages": stages,
                "test": "last",
                "data": data,
                "steps": self.steps,
                "batch": self.batch,
                "per_device": self.per_device,
                "lr": self.lr,
                "warmup": 0.05,
                "precision": precision or self.precision,
                "log_every": min(4, self.steps),
                "save_every": 5,
                "keep_checkpoints": 1,
                "seed": seed,
            }
        )


SMALL = Setting("pool2d:144:positions=pack@features", 4000, 60, 16, 8, 5.0e-4)
FULL = Setting(None, 20_000, 624, 32, 32, 5.0e-4)


def main() -> int:
    arguments = read()
    torch.set_num_threads(arguments.threads)
    silence_transformers()
    setting = FULL if arguments.full else SMALL
    if arguments.tiny:
        setting = Setting(setting.features, 32, 8, 4, 4, 1e-3)
    setting = replace(setting, steps=arguments.steps or setting.steps)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    same_setting(out, setting, arguments)
    task = scenes(arguments.questions)
    take_over(arguments.report, out, setting, task)
    wanted = [each for each in RUNS if not arguments.only or label(*each) in arguments.only]
    if not arguments.only:
        if not (out / "steps.json").exists():
            write_json(out / "steps.json", step_times(setting, out))
        test(out / "start", load_model(None), task, setting, say)
        write_report(out, setting, task, arguments)
    for name, seed in wanted:
        folder = out / label(name, seed)
        if not (folder / "trained.json").exists():
            train(folder, setting, name, seed)
        if not tested(folder):
            test(folder, load_model(folder / "model"), task, setting, say)
        write_report(out, setting, task, arguments)
    say(f"{arguments.report}: all that was asked for is done")
    return 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="576 tokens, the encoder in every step: for a GPU")
    parser.add_argument("--tiny", action="store_true", help="eight steps on a few scenes, to see that it runs")
    parser.add_argument("--steps", type=int, help=f"optimiser steps of each run [{SMALL.steps}, or {FULL.steps}]")
    parser.add_argument("--only", type=lambda text: text.split(","), help="runs such as single-1; parted by commas")
    parser.add_argument("--questions", type=int, default=600, help="of the fixed test set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the runs' folders [runs/llavolta or runs/llavolta-full]")
    parser.add_argument("--report", type=Path, help="[results/llavolta.json or results/llavolta-full.json]")
    arguments = parser.parse_args()
    suffix = "-full" if arguments.full else ""
    arguments.out = arguments.out or Path(f"runs/llavolta{suffix}")
    arguments.report = arguments.report or Path(f"results/llavolta{suffix}.json")
    known = [label(*each) for each in RUNS]
    unknown = sorted(set(arguments.only or ()) - set(known))
    if unknown:
        parser.error(f"no run is called {', '.join(unknown)}; there are {', '.join(known)}")
    return arguments


def label(name: str, seed: int) -> str:
    """The folder of a run."""
    return f"{name}-{seed}"


def same_setting(out: Path, setting: Setting, arguments: argparse.Namespace) -> None:
    """Refuse a folder of runs that were made otherwise."""
    told = {**vars(setting), "questions": arguments.questions, "runs": "1"}
    path = out / "setting.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != told:
        sys.exit(f"{out} holds runs of another setting ({path}); name another folder with --out")
    write_json(path, told)


def take_over(report: Path, out: Path, setting: Setting, task: Task) -> None:
    """Write the runs that a report of the same setting holds to their folders, as if they had been made here."""
    if not report.exists():
        return
    told = json.loads(report.read_text(encoding="utf-8"))
    if (told["setting"], told["data"]) != (vars(setting), task.digest):
        sys.exit(f"{report} holds runs of another setting or test; name another file with --report")
    if told["steps"] is not None and not (out / "steps.json").exists():
        write_json(out / "steps.json", told["steps"])
    for each in told["runs"]:
        folder = out / each["name"]
        folder.mkdir(exist_ok=True)
        known = {name: value for name, value in each.items() if name not in ("name", "tests")}
        if known and not (folder / "trained.json").exists():
            write_json(folder / "trained.json", known)
        for setting_of_test, answers in zip(settings_of(each["name"]), each["tests"], strict=True):
            if not (folder / f"{slug(setting_of_test)}.json").exists():
                write_json(folder / f"{slug(setting_of_test)}.json", answers)


# Training


def train(folder: Path, setting: Setting, name: str, seed: int) -> None:
    """One run, or what is left of it."""
    recipe = setting.recipe(SCHEDULES[name], seed)
    folder.mkdir(exist_ok=True)
    if setting.features is not None:
        # One folder of features for all runs: they have the same conversations and the same encoder.
        link_features(folder, folder.parent / "features")
    say(f"-- {folder.name}")
    run(recipe, folder, resume=True, say=say)
    ready = prepare(recipe)
    spent, dense = stage_flops(ready)
    table = ready.timetable
    logs = [each for each in json.loads((folder / "run.json").read_text(encoding="utf-8"))["history"] if "loss" in each]
    edges = [0, *(each["step"] for each in logs)]
    write_json(
        folder / "trained.json",
        {
            "schedule": name,
            "seed": seed,
            "stages": [[spec, table.length(number)] for number, spec in enumerate(table.specs)],
            "flops": sum(table.length(number) * setting.batch * each for number, each in enumerate(spent)),
            "dense_flops": table.steps * setting.batch * dense,
            "seconds": sum(each["seconds_per_step"] * (b - a) for each, a, b in zip(logs, edges, edges[1:])),
            "loss": [[each["step"], round(each["loss"], 4)] for each in logs],
        },
    )


def step_times(setting: Setting, out: Path) -> dict[str, Any]:
    """Seconds of one forward and backward pass over a batch, under every spec that a schedule has, in turns.

    The clock is the processor's own where that tells something (on a CPU), so other work hardly shows.
    """
    say("-- time per step")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = setting.recipe("single", 1)
    ready = prepare(recipe)
    model: Any = load_model(None)
    if setting.features is None:
        rows: Any = ready.rows
        collate: Any = Batches(ready.processor, family_of(model))
    else:
        from types import SimpleNamespace

        from foveate.train.features import train_on_features

        alone = SimpleNamespace(process_index=0, world_size=1, device=device)
        rows, collate = train_on_features(model, ready.processor, ready.rows, recipe, out / "features", say, alone)
    choose_parameters(model, recipe)
    model.to(device).train()
    inputs = next(inputs_of(collate, rows, range(setting.per_device), setting.per_device))
    batch = {name: value.to(device) for name, value in inputs.items()}
    specs = [DENSE, *dict.fromkeys(spec for name in SCHEDULES for spec in specs_of(name) if spec != DENSE)]
    times: dict[str, list[float]] = {spec: [] for spec in specs}
    clock = CLOCKS["cpu" if device == "cpu" else "wall"]
    for turn in range(4):
        for spec in specs:
            with foveate.apply(model, spec) if spec != DENSE else contextlib.nullcontext():
                began = clock()
                with torch.autocast(device, torch.bfloat16, enabled=setting.precision == "bf16"):
                    loss = model(**batch).loss
                loss.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times[spec].append(clock() - began)
            model.zero_grad()
    return {
        "clock": "the processor's own time, one thread" if device == "cpu" else "wall",
        "conversations": setting.per_device,
        "seconds": {spec: statistics.median(each) for spec, each in times.items()},
        "turns": times,
    }


def specs_of(name: str) -> list[str]:
    """The specs of a schedule's stages."""
    stages = SCHEDULES[name]
    if isinstance(stages, str):
        return [stage.spec for stage in published(stages, LAYERS)]
    return [str(each["spec"]) for each in stages]


# Tests


def settings_of(name: str) -> list[str]:
    """What a model is tested under: what the page's questions need, and nothing else."""
    if name in ("start", "single-1"):
        return [DENSE, LIGHT, HEAVY, CLUSTER]
    if name.startswith("always"):
        return [DENSE, CLUSTER if "cluster" in name else HEAVY]
    return [DENSE, LIGHT] if name.startswith(("single", "last")) else [DENSE]


def tested(folder: Path) -> bool:
    """Whether a model has been tested under everything."""
    return all((folder / f"{slug(spec)}.json").exists() for spec in settings_of(folder.name))


def slug(spec: str) -> str:
    """A spec as part of a file name."""
    return "test-" + "".join(letter if letter.isalnum() else "-" for letter in spec)


def whole_spec(setting: Setting, spec: str) -> Spec:
    """What a model is tested under, from the image on."""
    parts = [each for each in (setting.features, spec) if each not in (None, DENSE)]
    return parse("+".join(parts)) if parts else Spec(())


@torch.inference_mode()
def test(folder: Path, model: nn.Module, task: Task, setting: Setting, say: Any) -> None:
    """Ask a model the questions of the test set under all of its settings; each is one file."""
    folder.mkdir(exist_ok=True)
    model.to("cuda" if torch.cuda.is_available() else "cpu").float().eval()
    asker = Asker(model, load_processor(None))
    missing = [each for each in settings_of(folder.name) if not (folder / f"{slug(each)}.json").exists()]
    specs = {each: whole_spec(setting, each) for each in missing}
    right: dict[str, list[int]] = {each: [] for each in missing}
    spent = dict.fromkeys(missing, 0.0)
    for start in range(0, len(task.pictures), 8):
        pictures = task.pictures[start : start + 8]
        prompts = [asker.prompts(picture) for picture in pictures]
        encoded = encode(model, asker.pixels(prompts), list(specs.values()))
        for each, spec in specs.items():
            began = time.perf_counter()
            answered = asker.answer(prompts, spec, encoded)
            spent[each] += time.perf_counter() - began
            for picture, texts in zip(pictures, answered.texts, strict=True):
                right[each] += [
                    int(normalised(text) == normalised(asked.answer))
                    for asked, text in zip(picture.questions, texts, strict=True)
                ]
    clusters = [picture.name for picture in task.pictures for _ in picture.questions]
    for each in missing:
        found = mean_interval(right[each], clusters).to_dict()
        # One bit per question, so that models can be compared pair by pair.
        write_json(folder / f"{slug(each)}.json", {"spec": each, **found, "right": "".join(map(str, right[each]))})
        say(f"{folder.name} under {each}: {found['value']:.1%} ({spent[each]:.0f} s)")


# The report


def write_report(out: Path, setting: Setting, task: Task, arguments: argparse.Namespace) -> None:
    """Everything that there is so far, in one file."""
    runs = []
    for folder in [out / "start", *(out / label(*each) for each in RUNS)]:
        name = folder.name
        if not tested(folder):
            continue
        known = {} if name == "start" else json.loads((folder / "trained.json").read_text(encoding="utf-8"))
        tests = [json.loads((folder / f"{slug(each)}.json").read_text(encoding="utf-8")) for each in settings_of(name)]
        runs.append({"name": name, **known, "tests": tests})
    steps = json.loads((out / "steps.json").read_text(encoding="utf-8")) if (out / "steps.json").exists() else None
    write_json(
        arguments.report,
        {
            "what": "a start and what it becomes under schedules of compression; right: one digit per question",
            "setting": vars(setting),
            "questions": task.questions,
            "questions_per_image": [len(picture.questions) for picture in task.pictures],
            "data": task.digest,
            "planned": [label(*each) for each in RUNS],
            "steps": steps,
            "runs": runs,
            "environment": environment("cuda" if torch.cuda.is_available() else "cpu"),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
