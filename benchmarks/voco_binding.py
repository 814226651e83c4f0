#!/usr/bin/env python3
"""What keeps a few VoCo tokens from holding more? `python benchmarks/voco_binding.py`.

Short runs that differ from one of them in one thing: the learning rate, what is trained, how many LoRA ranks, which
questions and captions are learned from, which numbers of tokens questions see, where the tokens start, what they read.
All learn from the same images in the same order, and answer the same test questions. More runs go on from the shipped
adapter, to see what holds back tokens that have been trained for long.

Every run is skipped when its answers exist or the report has its row, and interrupted training resumes. The result is
docs/measured/voco-binding.json, from which `python docs/make.py voco` makes a table of docs/voco.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from _common import link_features, say
from voco_answers import ask, embedded_model, voco_configuration

from foveate.bench.environment import environment
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.embedded import PATH
from foveate.files import write_json
from foveate.fingerprint import model_fingerprint
from foveate.scenes import test_set
from foveate.train.objectives import parse_recipe
from foveate.train.recipe import Recipe
from foveate.train.run import run
from foveate.train.settings import read_mapping
from voco import plain

ROOT: Final = Path(__file__).parents[1]
BASE: Final = "base"
"""The run that new tokens are compared with."""
SHIPPED: Final = "shipped"
"""The adapter as it is, which runs that go on from it are compared with."""


@dataclass(frozen=True)
class Trial:
    """A run, by what it changes.

    Attributes:
        name: of its folder.
        what: it changes, in words.
        change: keys of the recipe, into its sections.
        after: the run whose tokens it goes on with; None for new ones.
        steps: the share of the steps that it makes.
        beside: the run that it is compared with.
    """

    name: str
    what: str
    change: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    steps: float = 1.0
    beside: str = BASE


TRIALS: Final = (
    Trial(BASE, "as recipes/voco.yaml"),
    Trial("full", "the decoder trained, not LoRA weights", {"train": "full", "lr": 5e-4}),
    Trial("on", "as many steps more", {}, SHIPPED, beside=SHIPPED),
    Trial(
        "on-144", "and reads 144", {"data": {"features": "tome:144:positions=pack@features"}}, SHIPPED, beside=SHIPPED
    ),
    Trial("on-rank-128", "and rank 128", {"lora": {"rank": 128, "alpha": 128}}, SHIPPED, beside=SHIPPED),
    Trial("captions-all", "a caption with every image", {"data": {"captions": 1.0}}),
    Trial("one-only", "all questions see one token", {"voco": {"elastic": [1]}}),
    Trial("rank-128", "LoRA of rank 128", {"lora": {"rank": 128, "alpha": 128}}),
    Trial("many-first", "first half: questions see 32 tokens", {"voco": {"elastic": [32]}}, steps=0.5),
    Trial(
        "many-then-few", "second half: fewer and fewer", {"voco": {"elastic": [1, 2, 1, 4, 1, 8]}}, "many-first", 0.5
    ),
    Trial("rate-half", "half the learning rate", {"lr": 1e-3}),
    Trial("reads-144", "reads 144 merged tokens", {"data": {"features": "tome:144:positions=pack@features"}}),
    Trial("twice", "twice the steps, on other images after the first", {"data": {"scenes": 2}}, steps=2.0),
    Trial("questions-two", "two questions per image, not eight", {"data": {"turns": 2}}),
    Trial("captions-none", "no captions", {"data": {"captions": 0.0}}),
    Trial("rate-double", "twice the learning rate", {"lr": 4e-3}),
    Trial("random-start", "tokens start at random, not from words", {"voco": {"words": None}}),
)


def main() -> int:
    """Make the runs that the command line names; return the exit code."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    wanted = [trial for trial in TRIALS if not arguments.only or trial.name in arguments.only]
    wanted = [trial for trial in wanted if trial.name not in known(arguments)]
    beside = {trial.beside for trial in wanted}
    for trial in TRIALS:
        if trial in wanted or trial.name in beside:
            measure(trial, arguments)
            write_json(arguments.out, summary(arguments))
    say(f"wrote {arguments.out}")
    return 0


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of a run [%(default)s]")
    parser.add_argument("--batch", type=int, default=12, help="images per step [%(default)s]")
    parser.add_argument("--questions", type=int, default=800, help="of the test set [%(default)s]")
    parser.add_argument("--only", nargs="*", choices=[trial.name for trial in TRIALS], help="runs; all by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "voco-binding")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "voco-binding.json")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


# Runs


def recipe_of(trial: Trial, arguments: argparse.Namespace) -> Recipe:
    """Return a trial's recipe: recipes/voco.yaml, shorter, with what the trial changes."""
    given = read_mapping(ROOT / "recipes" / "voco.yaml")
    steps = round(arguments.steps * trial.steps)
    given |= {"steps": steps, "batch": arguments.batch, "log_every": min(20, steps), "keep_checkpoints": 1}
    given["data"]["scenes"] = arguments.steps * arguments.batch
    if trial.after is not None:
        given["voco"].pop("words")
        given["voco"]["adapter"] = SHIPPED if trial.after == SHIPPED else str(arguments.runs / trial.after / "voco")
        given["lr"] *= 0.5
    for key, value in trial.change.items():
        if not isinstance(value, dict):
            given[key] = value
            continue
        for name, own in value.items():
            # The number of scenes is given as a multiple.
            given[key][name] = own * arguments.steps * arguments.batch if name == "scenes" else own
    given["voco"] = {name: value for name, value in given["voco"].items() if value is not None}
    if given["train"] != "lora":
        given.pop("lora")
    return parse_recipe(given)


def measure(trial: Trial, arguments: argparse.Namespace) -> None:
    """Train a trial and ask what comes of it."""
    out = arguments.runs / trial.name
    recipe = recipe_of(trial, arguments)
    if not (out / "trained.json").exists():
        link_features(out, arguments.runs / "features")
        say(f"-- {trial.name}: {trial.what}")
        began = time.process_time()
        run(recipe, out, resume=True, say=say)
        history = json.loads((out / "run.json").read_text(encoding="utf-8"))["history"]
        losses = [[each["step"], round(each["loss"], 4)] for each in history if "loss" in each]
        write_json(
            out / "trained.json", {"steps": recipe.steps, "seconds": time.process_time() - began, "loss": losses}
        )
    for name, folder, read in [(trial.name, out, recipe), (SHIPPED, PATH.parent, recipe_of(TRIALS[0], arguments))]:
        target = arguments.runs / name / "answers.json"
        if target.exists():
            continue
        spec = str(read.data.features).partition("@")[0].replace(":", "-")
        # A model that was trained has a projector of its own.
        kept = folder if read.train == "full" else arguments.runs
        images = kept / f"test-{spec}-{arguments.questions}.safetensors"
        target.parent.mkdir(exist_ok=True)
        images.parent.mkdir(exist_ok=True)
        write_json(target, ask(voco_configuration(folder / "voco"), read, arguments.questions, images))
        say(f"{name}: answered {arguments.questions} questions")


# The result


def summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy per run and number of tokens, and the differences to the run beside it; what is missing is left
    out."""
    owners = [scene.id for scene in test_set(arguments.questions) for _ in scene.questions]
    base = recipe_of(TRIALS[0], arguments).to_dict()
    first = Trial(SHIPPED, "the shipped adapter", beside=SHIPPED)
    before = known(arguments)
    made = [row_of(trial, arguments, owners) or before.get(trial.name) for trial in (*TRIALS, first)]
    return {
        "what": "share of test questions answered exactly after short runs, by how many VoCo tokens are asked",
        "questions": len(owners),
        "model": fingerprint(),
        "recipe": base,
        "rows": [row for row in made if row],
        "environment": environment(),
    }


@functools.cache
def fingerprint() -> str:
    """Return the embedded model's fingerprint, which takes a moment."""
    return model_fingerprint(embedded_model().model)


def known(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier report of the same model, recipe and questions, perhaps from another machine."""
    if not arguments.out.exists():
        return {}
    found = json.loads(arguments.out.read_text(encoding="utf-8"))
    asked = sum(len(scene.questions) for scene in test_set(arguments.questions))
    setting = [fingerprint(), recipe_of(TRIALS[0], arguments).to_dict(), asked]
    same = [found.get(key) for key in ("model", "recipe", "questions")] == setting
    return {row["name"]: row for row in found["rows"]} if same else {}


def row_of(trial: Trial, arguments: argparse.Namespace, owners: Sequence[str]) -> dict[str, Any] | None:
    """Return a trial's row, or None if it wasn't made."""
    path, beside = arguments.runs / trial.name / "answers.json", arguments.runs / trial.beside / "answers.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    compared = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() and trial.name != trial.beside else {}
    trained = arguments.runs / trial.name / "trained.json"
    return {
        "name": trial.name,
        "what": trial.what,
        "after": trial.after,
        "beside": trial.beside,
        "change": trial.change,
        **(json.loads(trained.read_text(encoding="utf-8")) if trained.exists() else {}),
        "tokens": {
            count: {
                "accuracy": plain(mean_interval(right, owners)),
                "difference": plain(difference_interval(right, compared[count], owners)) if compared else None,
            }
            for count, right in found.items()
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
