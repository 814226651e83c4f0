#!/usr/bin/env python3
"""Where are learned budgets better than fixed ones? `python benchmarks/atp_budgets.py`.

Thresholds are trained for 230 and for 144 of 576 tokens per layer, with two seeds each, the embedded model frozen, and
used at 230, 144, 86 and 58 tokens: 60, 75, 85 and 90 % fewer. Layer 2 of 12 is the first one whose scores tell
anything, and two layers with 576 tokens are a mean of 96 already, so at 86 and 58 a stride leaves 288 and 144 tokens
before the decoder, for all that acts inside it. Shifts of the thresholds are chosen on training scenes, so that the
mean is met. Beside them: the same scores with fixed numbers, other methods at the same layers with the same mean, and
methods before the decoder.

Answers are kept, so the same command goes on where it was. The result is docs/measured/atp-budgets.json, from which
`python docs/make.py atp` makes a table of docs/atp.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from _common import say
from atp_answers import lines_of, measure
from atp_configurations import Configuration, file_stem

import foveate
from atp import SKIP, needs
from atp import summary as summary_of
from foveate.bench.environment import environment
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.families import family_of
from foveate.files import write_json
from foveate.methods.atp import ATPLayer
from foveate.train.batches import Batches, inputs_of
from foveate.train.objectives import parse_recipe
from foveate.train.run import run
from foveate.train.sources import Scenes

ROOT: Final = Path(__file__).parents[1]
LAYERS: Final = 12
FIRST: Final = 2
"""The first layer at whose input tokens are dropped."""
SEEDS: Final = (1, 2)
TARGETS: Final = {"230-tokens": 0.4, "144-tokens": 0.25}
"""What is trained, and the share of tokens that it is trained for."""
VARIANTS: Final = {"no-spatial": {"parts": ["self", "cross"]}, "open": {"grid": 4}}
"""What else is trained for 144 tokens, with the first seed: without the spatial score, and from an open grid."""
VARIED: Final = 144
"""The mean that they are measured at."""
CALIBRATED: Final = 24
"""Conversations that thresholds start from; the recipe takes more, which takes long."""
FURTHEST: Final = 8.0
"""The largest shift of thresholds, in logits, among which the one that meets a mean is searched."""
HALVINGS: Final = 9
"""How often the range of shifts is halved."""


@dataclass(frozen=True)
class Budget:
    """A mean of tokens per layer.

    Attributes:
        mean: tokens of an image per decoder layer.
        entering: how many enter the decoder.
        adapter: which of the trained thresholds are used.
    """

    mean: int
    entering: int
    adapter: str

    @property
    def before(self) -> str:
        """What acts before the decoder; "" for nothing."""
        return "" if self.entering == 576 else f"stride:{self.entering}+"

    @property
    def kept(self) -> int:
        """How many tokens stay from the first layer on, where all that are dropped are dropped there."""
        return round((LAYERS * self.mean - FIRST * self.entering) / (LAYERS - FIRST))

    @property
    def inside(self) -> tuple[str, ...]:
        """Specs of fixed numbers inside the decoder."""
        return (
            f"{self.before}atp:{self.kept}:theta_s=1.0@2",
            f"{self.before}atp:{self.falling}:theta_s=1.0@2,4,8",
            f"{self.before}fastv:{self.kept}@2",
            f"{self.before}pyramiddrop:{self.falling}@2,4,8",
            f"{self.before}stride:{self.kept}@2",
            f"{self.before}pool:{self.kept}@2",
        )

    @property
    def falling(self) -> str:
        """Three numbers, each half of the one before, with the mean: for layers 2 and 3, 4 to 7, 8 to 11."""
        unit = (LAYERS * self.mean - FIRST * self.entering) / (2 * 4 + 4 * 2 + 4 * 1)
        return "/".join(str(max(1, round(unit * times))) for times in (4, 2, 1))

    @property
    def outside(self) -> tuple[str, ...]:
        """Specs before the decoder."""
        return tuple(f"{name}:{self.mean}" for name in ("tome", "cluster", "pool2d", "stride", "random"))


BUDGETS: Final = (
    Budget(144, 576, "144-tokens"),
    Budget(86, 288, "144-tokens"),
    Budget(58, 144, "144-tokens"),
    Budget(230, 576, "230-tokens"),
)
"""In the order in which they are measured."""


def main() -> int:
    """Train, choose shifts, ask, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=500, help="[%(default)s]")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "atp-budgets", help="adapters and answers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "atp-budgets.json")
    parser.add_argument("--steps", type=int, help="of each training, instead of the recipe's")
    parser.add_argument("--calibrate", type=int, default=32, help="scenes on which shifts are chosen [%(default)s]")
    parser.add_argument("--means", type=int, nargs="*", help="budgets to measure; all by default")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    budgets = [each for each in BUDGETS if not arguments.means or each.mean in arguments.means]
    for budget in budgets:
        names = learned(budget)
        train(arguments.work, arguments.steps, names.values())
        chosen = {"dense": Configuration(None)}
        chosen |= {spec: Configuration(foveate.parse(spec)) for spec in (*budget.inside, *budget.outside)}
        for name, folder in names.items():
            target = arguments.work / folder / f"shift-{budget.mean}.json"
            adapter = foveate.ATP.from_pretrained(arguments.work / folder / "atp")
            if not target.exists():
                write_json(target, shift_of(adapter, budget, arguments.calibrate))
            shift = json.loads(target.read_text(encoding="utf-8"))
            chosen[name] = Configuration(learned_spec(adapter, budget, shift))
        measure(chosen, arguments.work / "answers", arguments.questions, SKIP)
        write_json(arguments.out, summary(arguments))
    say(f"wrote {arguments.out}")
    return 0


# Training


def train(work: Path, steps: int | None, names: Iterable[str]) -> None:
    """Train the thresholds of these names that are missing."""
    given = yaml.safe_load((ROOT / "recipes" / "atp" / "144-tokens.yaml").read_text(encoding="utf-8"))
    given["atp"]["calibrate"] = CALIBRATED
    given |= {} if steps is None else {"steps": steps, "log_every": 1}
    for name in names:
        change = VARIANTS.get(name) or {"target": TARGETS[name.rpartition("-")[0]]}
        seed = 1 if name in VARIANTS else int(name.rpartition("-")[2])
        recipe = parse_recipe({**given, "seed": seed, "atp": {**given["atp"], **change}})
        run(recipe, work / name, resume=True, say=lambda text, name=name: say(f"{name} {text}"))


def learned(budget: Budget) -> dict[str, str]:
    """Return the names of learned configurations of a budget, each with the run whose thresholds it uses."""
    names = [f"{budget.adapter}-{seed}" for seed in SEEDS]
    names += VARIANTS if budget.mean == VARIED else ()
    return {f"learned {budget.mean} {name}": name for name in names}


# Shifts


def learned_spec(adapter: foveate.ATP, budget: Budget, shift: float) -> foveate.Spec:
    """Return the spec of an adapter whose thresholds are shifted."""
    before = foveate.parse(budget.before.rstrip("+")).steps if budget.before else ()
    layers = range(len(adapter.layers))
    return foveate.Spec((*before, *(foveate.Step(ATPLayer.of(adapter, number, shift)) for number in layers)))


def shift_of(adapter: foveate.ATP, budget: Budget, scenes: int) -> float:
    """Return the shift with which an adapter meets the mean, on scenes that it was not trained on and isn't tested on.

    The mean falls as the shift grows.
    """
    low, high = -FURTHEST, FURTHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_tokens(adapter, budget, scenes, middle) > budget.mean else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def mean_tokens(adapter: foveate.ATP, budget: Budget, scenes: int, shift: float) -> float:
    """Return the mean of tokens per layer under a shift."""
    model = embedded()[0]
    found: list[float] = []
    for call, encoded in calibration(scenes):
        with foveate.apply(model, learned_spec(adapter, budget, shift)) as applied:
            model(**call, use_cache=False, mm_encoder_outputs=foveate.engine.encoder_outputs(model, encoded))
        found += [image.mean_over_layers for image in applied.report().images]
    return statistics.fmean(found)


@cache
def embedded() -> Any:
    """Return the embedded model and its processor."""
    return foveate.reference()


@cache
def calibration(scenes: int) -> list[tuple[dict[str, Any], Any]]:
    """Return prompts and encoded images on which shifts are chosen."""
    model, processor = embedded()
    collate, rows = Batches(processor, family_of(model)), Scenes(scenes, turns=1, first=205_000)
    found = []
    for batch in inputs_of(collate, rows, range(len(rows))):
        call = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append((call, foveate.encode(model, {"pixel_values": batch["pixel_values"]})))
    return found


# The result


def summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every figure of the page for the budgets that have been measured."""
    lines = {path.stem: lines_of(path) for path in sorted((arguments.work / "answers").glob("*.jsonl"))}
    scenes = [line["scene"] for line in lines["dense"]]
    whole = {name: own for name, own in lines.items() if len(own) == len(scenes)}
    return {
        "what": "share of questions answered exactly with learned and with fixed numbers of tokens; differences: two "
        "seeds of learned thresholds, averaged per question, less a fixed rule",
        "questions": len(scenes),
        "scenes": len({*scenes}),
        "skipped_scenes": SKIP,
        "dense": summary_of(whole["dense"], whole["dense"]),
        "budgets": [found for budget in BUDGETS if (found := budget_summary(budget, whole, scenes))],
        "environment": environment(),
    }


def budget_summary(budget: Budget, lines: Mapping[str, list[dict[str, Any]]], scenes: list[str]) -> dict[str, Any]:
    """Return the rows of one budget, and the learned thresholds beside each; nothing if it wasn't measured."""
    seeds = [lines.get(f"learned {budget.mean} {budget.adapter}-{seed}") for seed in SEEDS]
    if any(each is None for each in seeds):
        return {}
    right = [statistics.fmean(float(line["right"]) for line in pair) for pair in zip(*seeds, strict=True)]  # type: ignore
    dense = [float(line["right"]) for line in lines["dense"]]
    rows: list[dict[str, Any]] = []
    variants = [f"learned {budget.mean} {name}" for name in VARIANTS]
    for name in (*budget.inside, *budget.outside, *variants):
        own = lines.get(file_stem(name), lines.get(name))
        if own is not None:
            away = difference_interval(right, [float(line["right"]) for line in own], scenes).to_dict()
            rows.append(
                {
                    "what": name,
                    **summary_of(own, lines["dense"]),
                    "learned_less_it": away,
                    "learned_less_it_by_skill": skills_less(seeds, own),
                }
            )
    return {
        "mean": budget.mean,
        "entering": budget.entering,
        "adapter": budget.adapter,
        "learned": {
            "accuracy": mean_interval(right, scenes).to_dict(),
            "to_dense": difference_interval(right, dense, scenes).to_dict(),
            "seeds": [summary_of(each, lines["dense"]) for each in seeds],  # type: ignore
            "needs": needs(seeds[0]),  # type: ignore
        },
        "rows": rows,
    }


def skills_less(seeds: Any, lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by skill the paired difference between learned thresholds, averaged over seeds, and a fixed rule."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({line["skill"] for line in lines}):
        own = [number for number, line in enumerate(lines) if line["skill"] == name]
        learned = [statistics.fmean(float(each[number]["right"]) for each in seeds) for number in own]
        fixed = [float(lines[number]["right"]) for number in own]
        found[name] = difference_interval(learned, fixed, [lines[number]["scene"] for number in own]).to_dict()
    return found


if __name__ == "__main__":
    sys.exit(main())
