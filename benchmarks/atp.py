#!/usr/bin/env python3
"""Measure what learned budgets are worth on the embedded model: `python benchmarks/atp.py PART`.

start    make the adapters before training, to compare with
train    train the missing adapters (recipes/atp and their variants); interrupted training resumes
choose   compare a start with a closed grid and one with an open grid, on scenes before those that are measured
measure  answer the questions under every configuration; resumes
points   the same for other readings of the paper's scores, untrained
draw     draw docs/pictures/atp-kept.png: the tokens that stay of three scenes
report   write docs/measured/atp.json, from which `python docs/make.py atp --pictures` makes the tables of
         docs/atp.md and docs/pictures/atp.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from atp_answers import lines_of, measure
from atp_configurations import COMPARED, FIXED, LEARNED, STARTS, VARIANTS, configurations, file_stem, readings
from atp_inside import draw_kept, tokens_by_place

import foveate
from foveate.bench.statistics import difference_interval, mean_interval, value_interval
from foveate.costmodel import cost
from foveate.families import family_of
from foveate.files import write_json
from foveate.train.batches import Batches, inputs_of
from foveate.train.objectives import parse_recipe
from foveate.train.run import run
from foveate.train.sources import Scenes

ROOT = Path(__file__).parents[1]
SKIP = 500
"""The first test scene that is measured: settings were chosen on earlier ones."""
CHOICE_SKIP, CHOICE_QUESTIONS, PLACE_QUESTIONS = 470, 250, 60
"""For comparing an open grid with a closed one: the first test scene, before `SKIP`, and numbers of questions."""


def main() -> int:
    """Run the part that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("start", "train", "choose", "measure", "points", "draw", "report"))
    parser.add_argument("--only", help="names of configurations or variants, separated by semicolons")
    parser.add_argument("--questions", type=int, default=276, help="of test scenes [%(default)s]")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "atp", help="folder of adapters and answers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, only = arguments.work, arguments.only.split(";") if arguments.only else None
    if arguments.part == "start":
        start(work, only)
    elif arguments.part == "train":
        train(work, only)
    elif arguments.part == "choose":
        pair = ("learned 144 144-tokens", "learned 144 open")
        chosen = {name: each for name, each in configurations(work).items() if name in pair}
        chosen = {name: each for name, each in chosen.items() if only is None or name in only}
        measure(chosen, work / "choice", CHOICE_QUESTIONS, CHOICE_SKIP)
        found = tokens_by_place(work, PLACE_QUESTIONS, CHOICE_SKIP)
        write_json(work / "choice" / "by-place.json", found, indent=None)
    elif arguments.part == "draw":
        draw_kept(work, arguments.out / "pictures" / "atp-kept.png", arguments.questions, SKIP)
    elif arguments.part == "report":
        report(work, arguments.out / "measured" / "atp.json")
    else:
        chosen = readings() if arguments.part == "points" else configurations(work)
        chosen = {name: each for name, each in chosen.items() if only is None or name in only}
        measure(chosen, work / "answers", arguments.questions, SKIP)
    return 0


# Training


@torch.no_grad()
def start(work: Path, only: list[str] | None) -> None:
    """Write adapters whose thresholds are the same for all images, moved to the target: where training starts."""
    model, processor = foveate.reference()
    collate, rows = Batches(processor, family_of(model)), Scenes(32, turns=1, first=204_000)
    batches = list(inputs_of(collate, rows, range(len(rows))))
    for name, parts in STARTS.items():
        if (only is None or name in only) and not (work / name / "atp" / "atp.json").exists():
            adapter = foveate.ATP(model, (2, 4, 8), parts=parts)
            adapter.prepare(model, batches, 0.25)
            print(name, adapter.calibrate(model, batches, (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)), flush=True)
            adapter.save_pretrained(work / name / "atp")


def train(work: Path, only: list[str] | None) -> None:
    """Train the adapters that are missing, one after another."""
    recipes = {name: yaml.safe_load((ROOT / "recipes" / "atp" / f"{name}.yaml").read_text()) for name in LEARNED}
    given = recipes["144-tokens"]
    recipes |= {name: {**given, "atp": {**given["atp"], **change}} for name, change in VARIANTS.items()}
    for name, recipe in recipes.items():
        if only is None or name in only:
            run(
                parse_recipe(recipe),
                work / name,
                resume=True,
                say=lambda text, name=name: print(name, text, flush=True),
            )


# The result


def report(work: Path, target: Path) -> None:
    """Write every figure of the page to one JSON file, and print a summary."""
    lines = {path.stem: lines_of(path) for path in sorted((work / "answers").glob("*.jsonl"))}
    questions = min(len(own) for own in lines.values())
    if longer := [name for name, own in lines.items() if len(own) > questions]:
        print(f"{questions} questions, since some configurations have no more; {len(longer)} have more: left out")
    lines = {name: own[:questions] for name, own in lines.items()}
    scenes = [line["scene"] for line in lines["dense"]]
    found: dict[str, Any] = {
        "questions": questions,
        "scenes": len({*scenes}),
        "skipped_scenes": SKIP,
        "configurations": {name: summary(own, lines["dense"]) for name, own in lines.items()},
        "needs": {name: needs(lines[name]) for name in lines if name in COMPARED},
    }
    for name in COMPARED:
        if name in lines:
            found["configurations"][name]["to_rivals"] = differences(name, lines)
    choice = {path.stem: lines_of(path) for path in sorted((work / "choice").glob("*.jsonl"))}
    if choice:
        by_place = json.loads((work / "choice" / "by-place.json").read_text())
        found["choice"] = choice_summary(choice) | {"by_place": by_place}
    for name in (*LEARNED, *VARIANTS):
        history = work / name / "run.json"
        if history.exists():
            found.setdefault("training", {})[name] = json.loads(history.read_text())["history"]
    write_json(target, found)
    for name, row in sorted(found["configurations"].items(), key=lambda pair: -pair[1]["accuracy"]["value"]):
        print(f"{name:45} {row['accuracy']['value']:.1%} {row['mean_tokens']:6.1f} {row['prefill_gflops']:.2f} GFLOPs")


def summary(lines: list[dict[str, Any]], dense: list[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy, its difference to dense, tokens and FLOPs of one configuration."""
    scenes = [line["scene"] for line in dense]
    assert [line["scene"] for line in lines] == scenes
    right, reference = ([float(line["right"]) for line in own] for own in (lines, dense))
    layers = [statistics.fmean(line["layers"][layer] for line in lines) for layer in range(12)]
    skills = defaultdict(list)
    for line in lines:
        skills[line["skill"]].append(float(line["right"]))
    return {
        "accuracy": mean_interval(right, scenes).to_dict(),
        "to_dense": difference_interval(right, reference, scenes).to_dict(),
        "mean_tokens": statistics.fmean(layers),
        "layers": [round(count, 1) for count in layers],
        "prefill_gflops": prefill_flops(layers) / 1e9,
        "skills": {skill: {"accuracy": statistics.fmean(own), "questions": len(own)} for skill, own in skills.items()},
    }


def differences(name: str, lines: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the paired differences of a learned configuration to all others at the same mean."""
    mean = int(name.split()[1])
    right = [float(line["right"]) for line in lines[name]]
    scenes = [line["scene"] for line in lines[name]]
    rivals = [other for other in lines if other.startswith(f"learned {mean} ") and other != name]
    rivals += [*(file_stem(spec) for spec in FIXED[mean]), "fixed-lora"]
    return {
        rival: difference_interval(right, [float(line["right"]) for line in lines[rival]], scenes).to_dict()
        for rival in rivals
        if rival in lines
    }


def choice_summary(lines: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the accuracy of a start with an open grid and of one with a closed grid, and the paired difference."""
    questions = min(len(own) for own in lines.values())
    scenes = [line["scene"] for line in next(iter(lines.values()))[:questions]]
    right = {name: [float(line["right"]) for line in own[:questions]] for name, own in lines.items()}
    found = {
        "questions": questions,
        "scenes": len({*scenes}),
        "accuracy": {name: statistics.fmean(own) for name, own in right.items()},
    }
    opened, closed = right.get("learned 144 open"), right.get("learned 144 144-tokens")
    if opened is not None and closed is not None:
        found["open_minus_closed"] = difference_interval(opened, closed, scenes).to_dict()
    return found


def prefill_flops(layers: list[float]) -> float:
    """Return the FLOPs of the prefill of a prompt of 20 text tokens with so many visual tokens in each layer."""
    changes = [layer for layer in range(1, 12) if round(layers[layer]) != round(layers[layer - 1])]
    keeps = "/".join(str(max(1, round(layers[layer]))) for layer in changes)
    steps = [f"pool:{round(layers[0])}"] if round(layers[0]) < 576 else []
    steps += [f"pool:{keeps}@{','.join(map(str, changes))}"] if changes else []
    spec = "+".join(steps) or None
    return cost(None, spec, images=[(192, 192)], text_tokens=20, new_tokens=1).part("prefill").flops


def needs(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe how budgets follow what is in a scene and what is asked.

    Args:
        lines: one per question, in the order of the scenes.
    """
    tokens = [statistics.fmean(line["layers"]) for line in lines]
    groups: dict[str, dict[str, tuple[list[float], list[str]]]] = {"skill": {}, "kind": {}}
    per_scene: dict[str, list[float]] = defaultdict(list)
    described = {line["scene"]: (line["things"], line["kind"]) for line in lines}
    for line, count in zip(lines, tokens, strict=True):
        for group, values in groups.items():
            shares, scenes = values.setdefault(line[group], ([], []))
            shares.append(count / 576)
            scenes.append(line["scene"])
        per_scene[line["scene"]].append(count)
    rows = [
        [*described[scene], statistics.fmean(counts), min(counts), max(counts)] for scene, counts in per_scene.items()
    ]
    return {
        "tokens": {
            "mean": statistics.fmean(tokens),
            "least": min(tokens),
            "most": max(tokens),
            "spread": statistics.pstdev(tokens),
        },
        "rank_correlation_with_things": rank_correlation([row[0] for row in rows], [row[2] for row in rows]),
        "scenes": [[things, kind, *(round(count, 1) for count in counts)] for things, kind, *counts in rows],
        **{
            f"by_{group}": {name: mean_tokens(*own) for name, own in sorted(values.items())}
            for group, values in groups.items()
        },
    }


def mean_tokens(shares: list[float], scenes: list[str]) -> dict[str, float | None]:
    """Return the mean of shares of 576 tokens and its interval by scene, in tokens."""
    return value_interval([576 * share for share in shares], scenes).to_dict()


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Return Spearman's rank correlation; 0 if all values of one list are equal."""
    from scipy.stats import spearmanr

    if len({*one}) == 1 or len({*other}) == 1:
        return 0.0
    found: Any = spearmanr(one, other)
    return float(found.statistic)


if __name__ == "__main__":
    sys.exit(main())
