#!/usr/bin/env python3
"""Measure how much of an image a few VoCo tokens keep: `python benchmarks/voco.py`.

Trains VoCo tokens for the embedded model by recipes/voco.yaml, and two rivals alike (the same images, questions, LoRA
weights, learning rate, and steps unless --rival-steps says otherwise): average pooling with a linear layer, and a small
Q-Former, one token each. Then asks all of them the questions of the test set, and also the dense model, the dense
model without an image, and untrained VoCo tokens; and measures the time of a second question about an image.

Three more parts continue from the trained tokens. `longer` trains all three on other images by recipes/voco-longer.yaml
(rivals for --rival-longer steps). `distil` trains them on with cross-entropy, and alike with half distillation. `clips`
trains them on clips by recipes/voco-clips.yaml, and asks about the frames in order and shuffled.

`stream` trains nothing: it asks the shipped adapter about streams of 4, 16 and 64 segments, in order and shuffled, and
measures bytes and times; its result is docs/measured/voco-stream.json.

Every part writes a file under --runs and is skipped when that exists; interrupted training resumes. The result is
docs/measured/voco.json, from which `python docs/make.py voco` makes the tables of docs/voco.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import link_features, say
from voco_answers import (
    COUNTS,
    Configuration,
    ask,
    ask_clips,
    dense_configuration,
    rival_configuration,
    untrained_configuration,
    voco_configuration,
)
from voco_rivals import RIVALS, WEIGHTS, train_rival
from voco_stream import LENGTHS, VISUAL, stream_bytes, stream_times
from voco_stream import answers as stream_answers
from voco_times import times

from foveate.bench.environment import environment
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.files import write_json
from foveate.scenes import CLIP_KINDS, clip, test_set
from foveate.train.objectives import parse_recipe
from foveate.train.recipe import Recipe
from foveate.train.run import run
from foveate.train.settings import read_mapping

ROOT = Path(__file__).parents[1]
LONGER = ("press-longer", "pool-longer", "qformer-longer")
"""The same three runs, continued on other images."""
FURTHER = {"plain": 0.0, "distil": 0.5}
"""The weight of distillation in the runs that continue from the trained tokens."""
PRESSED = ("press", LONGER[0], *FURTHER)
"""Runs whose result is VoCo tokens."""
RESAMPLES = 2_000
"""How often images are resampled for the intervals of retention."""


def main() -> int:
    """Run the parts that the command line names; return the exit code."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(arguments)
    train_parts(recipe, arguments)
    if "answers" in arguments.parts:
        answer(recipe, arguments)
    if "stream" in arguments.parts:
        write_json(arguments.stream_out, stream(arguments))
        say(f"wrote {arguments.stream_out}")
    if "times" in arguments.parts:
        target = arguments.runs / "times.json"
        if not target.exists():
            write_json(target, times(arguments.threads))
    if {*arguments.parts} - {"stream"}:
        write_json(arguments.out, summary(recipe, arguments))
        say(f"wrote {arguments.out}")
    return 0


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "voco.yaml")
    parser.add_argument("--steps", type=int, help="instead of the recipe's; rivals get as many")
    parser.add_argument("--rival-steps", type=int, help="instead of as many as VoCo tokens get")
    parser.add_argument("--scenes", type=int, help="training scenes instead of the recipe's")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "voco")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "voco.json")
    parser.add_argument("--questions", type=int, default=1_500, help="of the test set")
    parser.add_argument(
        "--parts", nargs="*", default=["press", *RIVALS, "answers", "times"], help="also: longer, distil, clips, stream"
    )
    parser.add_argument(
        "--rival-longer", type=int, help="steps of rivals in longer, instead of as many as VoCo tokens get"
    )
    parser.add_argument("--further", type=int, default=100, help="steps of distil, and of its comparison")
    parser.add_argument("--clips", type=int, default=200, help="test clips to ask about")
    parser.add_argument("--stream-clips", type=int, default=16, help="of each kind and length, for stream")
    parser.add_argument("--untimed", action="store_true", help="leave the times out of stream")
    parser.add_argument("--timed-segments", type=int, nargs="*", default=LENGTHS, help="segments of streams to time")
    parser.add_argument("--turns", type=int, default=5, help="of the times of stream")
    parser.add_argument("--stream-out", type=Path, default=ROOT / "docs" / "measured" / "voco-stream.json")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


# Recipes


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the first run's recipe."""
    given = read_mapping(arguments.recipe)
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.scenes is not None:
        given["data"]["scenes"] = arguments.scenes
    return parse_recipe(given)


def longer_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return recipes/voco-longer.yaml, starting from the tokens of the first run."""
    given = read_mapping(ROOT / "recipes" / "voco-longer.yaml")
    given["voco"]["adapter"] = str(arguments.runs / "press" / "voco")
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.scenes is not None:
        given["data"]["scenes"] = arguments.scenes
    given["data"]["features"] = recipe.data.features
    return parse_recipe(given)


def rival_recipe(recipe: Recipe, steps: int | None) -> Recipe:
    """Return a rival's recipe: the same images, questions and LoRA weights; always one token."""
    one_token = {"voco": {"tokens": 1, "shared": False, "apart": True}, "steps": steps or recipe.steps}
    return parse_recipe(without_empty(recipe.to_dict()) | one_token)


def further_recipe(recipe: Recipe, arguments: argparse.Namespace, weight: float) -> Recipe:
    """Return a recipe of more steps on the same data, on whole conversations, since the dense teacher reads those."""
    given = without_empty(recipe.to_dict())
    for name in ("words", "apart"):
        given["voco"].pop(name, None)
    given["voco"] |= {"adapter": str(arguments.runs / "press" / "voco"), "distil": weight}
    given |= {"steps": arguments.further, "lr": recipe.lr / 4}
    return parse_recipe(given)


def clips_recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Return recipes/voco-clips.yaml, starting from the tokens of the first run."""
    given = read_mapping(ROOT / "recipes" / "voco-clips.yaml")
    given["voco"]["adapter"] = str(arguments.runs / "press" / "voco")
    given["data"]["features"] = recipe.data.features
    if arguments.steps is not None and arguments.steps < given["steps"]:
        given["steps"] = arguments.steps
        given["data"]["clips"] = min(given["data"]["clips"], arguments.steps * given["batch"])
    return parse_recipe(given)


def without_empty(value: Any) -> Any:
    """Return a recipe's data without what has no value, so that it can be parsed again."""
    if isinstance(value, dict):
        return {name: without_empty(own) for name, own in value.items() if own not in (None, [], {}, ())}
    return value


# Training


def train_parts(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train what the parts ask for."""
    runs = arguments.runs
    if "press" in arguments.parts:
        train("press", recipe, runs)
    for kind in RIVALS:
        if kind in arguments.parts:
            train_rival(kind, rival_recipe(recipe, arguments.rival_steps), run_folder(runs, kind), None, say)
    if "longer" in arguments.parts:
        longer = longer_recipe(recipe, arguments)
        train("press-longer", longer, runs)
        for kind in RIVALS:
            out = run_folder(runs, f"{kind}-longer")
            train_rival(kind, rival_recipe(longer, arguments.rival_longer), out, runs / kind, say)
    if "distil" in arguments.parts:
        for name, weight in FURTHER.items():
            train(name, further_recipe(recipe, arguments, weight), runs)
    if "clips" in arguments.parts:
        train("clips", clips_recipe(recipe, arguments), runs)
        target = runs / "answers-clips.json"
        if not target.exists():
            write_json(target, ask_clips(runs / "clips" / "voco", arguments.clips))


def train(name: str, recipe: Recipe, runs: Path) -> None:
    """Train VoCo tokens; an interrupted run resumes."""
    run(recipe, run_folder(runs, name), resume=True, say=say)


def run_folder(runs: Path, name: str) -> Path:
    """Return a run's folder, with a link to the encoder features that the first run kept."""
    out = runs / name
    out.mkdir(parents=True, exist_ok=True)
    features = runs / "press" / "features"
    if features.exists():
        link_features(out, features)
    return out


# Streams


def stream(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the shipped adapter's memories of streams answer, with their bytes and times; each part is kept."""
    made: dict[str, Callable[[], Any]] = {
        "answers": lambda: stream_answers(arguments.stream_clips, arguments.runs),
        "bytes": stream_bytes,
        "times": lambda: stream_times(arguments.threads, arguments.timed_segments, arguments.turns),
    }
    found: dict[str, Any] = {}
    for name, make in made.items():
        if name == "times" and arguments.untimed:
            continue
        target = arguments.runs / f"stream-{name}.json"
        if not target.exists():
            write_json(target, {"found": make()})
        found[name] = json.loads(target.read_text(encoding="utf-8"))["found"]
    return {
        "what": "share of questions answered exactly by memories of the shipped adapter; each segment is one frame",
        "clips": arguments.stream_clips,
        "visual_tokens": VISUAL,
        **found,
        "environment": environment(),
    }


# Answers


def answer(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Write which questions of the test set are answered exactly, one file per configuration that is trained."""
    runs = arguments.runs
    made: dict[str, Callable[[], Configuration]] = {"dense": dense_configuration, "untrained": untrained_configuration}
    for name in PRESSED:
        if (runs / name / "voco" / "voco.json").exists():
            made[name] = lambda name=name: voco_configuration(runs / name / "voco")
    given = rival_recipe(recipe, None)
    for name in (*RIVALS, *LONGER[1:]):
        if (runs / name / WEIGHTS).exists():
            made[name] = lambda name=name: rival_configuration(name.partition("-")[0], given, runs / name)
    images = runs / f"test-{arguments.questions}.safetensors"
    for name, make in made.items():
        target = runs / f"answers-{name}.json"
        if not target.exists():
            write_json(target, ask(make(), recipe, arguments.questions, images))
            say(f"{name}: answered {arguments.questions} questions")


# The result


def summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy and retention per configuration, with intervals; what wasn't measured is left out."""
    scenes = list(test_set(arguments.questions))
    owners = [scene.id for scene in scenes for _ in scene.questions]
    skills = [question.skill for scene in scenes for question in scene.questions]
    found = answers_of(arguments.runs)
    measured = arguments.runs / "times.json"
    return {
        "what": "share of test questions answered exactly; retention: (x - untrained) / (dense - untrained); "
        "ratio: x / dense",
        "questions": len(owners),
        "images": len(scenes),
        "recipe": recipe.to_dict(),
        "rival_steps": arguments.rival_steps or recipe.steps,
        "longer": longer_summary(recipe, arguments) if "press-longer:1" in found else None,
        "rows": [accuracy_row(name, found, owners, skills) for name in found],
        "further": arguments.further if "plain:1" in found else None,
        "clips": clips_summary(recipe, arguments),
        "times": json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None,
        "environment": environment(),
    }


def answers_of(runs: Path) -> dict[str, list[int]]:
    """Return the answers that were written, by configuration: "press:1" is one token of the run press."""
    found: dict[str, list[int]] = {}
    for name in ("dense", "untrained", "press", *RIVALS, *LONGER, *FURTHER):
        path = runs / f"answers-{name}.json"
        if path.exists():
            for key, right in json.loads(path.read_text(encoding="utf-8")).items():
                found[f"{name}:{key}" if name in ("dense", *PRESSED) else name] = right
    return found


def accuracy_row(
    name: str, found: dict[str, list[int]], owners: Sequence[str], skills: Sequence[str]
) -> dict[str, Any]:
    """Return the row of one configuration: accuracy, retention, and differences to what it is compared with."""
    right, upper, lower = found[name], found.get("dense:dense"), found.get("untrained")
    row: dict[str, Any] = {"what": name, "accuracy": plain(mean_interval(right, owners))}
    row["by_skill"] = {
        skill: round(statistics.mean(r for r, s in zip(right, skills) if s == skill), 4) for skill in sorted({*skills})
    }
    if upper is not None and lower is not None and name not in ("dense:dense", "untrained"):
        row |= retention(right, upper, lower, owners)
        row["over_untrained"] = plain(difference_interval(right, lower, owners))
    kind, _, count = name.partition(":")
    for rival in RIVALS:
        compared = rival + kind.removeprefix("press")
        if name in ("press:1", "press-longer:1") and compared in found:
            row[f"over_{rival}"] = plain(difference_interval(right, found[compared], owners))
    if kind == "distil":
        row["over_plain"] = plain(difference_interval(right, found[f"plain:{count}"], owners))
    return row


def longer_summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe by which training continued, and the rivals' steps."""
    longer = longer_recipe(recipe, arguments)
    return {"recipe": published(longer), "rival_steps": arguments.rival_longer or longer.steps}


def clips_summary(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return accuracy by kind of question, with frames in order and shuffled, and the differences by clip."""
    path = arguments.runs / "answers-clips.json"
    if not path.exists():
        return None
    found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    questions = [question for seed in range(arguments.clips) for question in clip(seed, split="test").questions]
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        row: dict[str, Any] = {"tokens": count}
        for skill in CLIP_KINDS["lane"]:
            ordered, shuffled = (
                [
                    right
                    for right, question in zip(found[f"{order}:{count}"], questions, strict=True)
                    if question.skill == skill
                ]
                for order in ("in order", "shuffled")
            )
            owners = [str(number) for number in range(len(ordered))]
            row[skill] = {
                "in_order": plain(mean_interval(ordered, owners)),
                "shuffled": plain(mean_interval(shuffled, owners)),
                "difference": plain(difference_interval(ordered, shuffled, owners)),
            }
        rows.append(row)
    commonest = {
        skill: max(Counter(question.answer for question in questions if question.skill == skill).values())
        for skill in CLIP_KINDS["lane"]
    }
    return {
        "clips": arguments.clips,
        "frames": len(clip(0).frames),
        "recipe": published(clips_recipe(recipe, arguments)),
        "commonest_answer": {skill: round(count / arguments.clips, 4) for skill, count in commonest.items()},
        "rows": rows,
    }


def published(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as data, without the path of the adapter that it starts from."""
    given = recipe.to_dict()
    given["voco"]["adapter"] = "press"
    return given


def retention(
    right: Sequence[int], upper: Sequence[int], lower: Sequence[int], owners: Sequence[str]
) -> dict[str, Any]:
    """Return retention and ratio, with 95 % intervals from resampling images.

    Args:
        right: 1 for each question that is answered exactly.
        upper: the dense model's.
        lower: the untrained tokens'.
        owners: the image of each question.
    """
    sums: dict[str, list[int]] = {}
    for *values, owner in zip(right, upper, lower, owners, strict=True):
        own = sums.setdefault(owner, [0, 0, 0])
        for number, value in enumerate(values):
            own[number] += int(value)
    images, generator = list(sums.values()), random.Random(1)

    def measures(chosen: Sequence[Sequence[int]]) -> tuple[float, float]:
        x, top, bottom = (sum(image[number] for image in chosen) for number in range(3))
        return ((x - bottom) / (top - bottom) if top != bottom else math.nan), (x / top if top else math.nan)

    resampled = [measures(generator.choices(images, k=len(images))) for _ in range(RESAMPLES)]
    out: dict[str, Any] = {}
    for number, name in enumerate(("retention", "ratio")):
        values = sorted(pair[number] for pair in resampled)
        low, high = values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES) - 1]
        out[name] = {"value": round(measures(images)[number], 4), "low": round(low, 4), "high": round(high, 4)}
    return out


def plain(interval: Any) -> dict[str, Any]:
    """Return an interval as rounded data."""
    return {name: None if value is None else round(value, 4) for name, value in interval.to_dict().items()}


if __name__ == "__main__":
    raise SystemExit(main())
