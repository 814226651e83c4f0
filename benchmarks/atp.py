#!/usr/bin/env python3
"""What learned budgets are worth on the embedded model: `python benchmarks/atp.py PART`.

    start    adapters before any training, which training begins with
    train    train the adapters that are missing (recipes/atp and their variants); goes on where it was interrupted
    choose   what starts closed and what starts with a grid open, on scenes in front of those that are measured
    measure  answers and tokens of every configuration, question by question; goes on where it was interrupted
    points   the rule with other readings of the paper's scores, nothing trained
    draw     docs/pictures/atp-kept.png: what stays of three scenes, layer by layer
    report   docs/measured/atp.json, the tables of docs/atp.md and docs/pictures/atp.png from what was measured

An answer is right if the model's most likely token is the right one at each step up to the end of the answer; prompt
and answer go through the model at once, and the plan sees the prompt alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics as st
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

import foveate
from foveate.bench.results import write_whole
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.costmodel import cost
from foveate.engine import signals
from foveate.families import family_of
from foveate.loading import load
from foveate.methods.atp import ATPLayer, ATPMethod
from foveate.plan import Plan
from foveate.scenes import Scene, test_set
from foveate.tokens import Layout, Segment, Text
from foveate.train.batches import IGNORE, Batches
from foveate.train.recipe import parse_recipe
from foveate.train.run import run
from foveate.train.sources import Conversation, Scenes
from foveate.view import Panel, draw, save_picture

ROOT = Path(__file__).parents[1]
LEARNED = ("144-tokens", "86-tokens", "144-tokens-lora", "86-tokens-lora", "fixed-lora")
"""Recipes, and what the folders of their runs are called."""
VARIANTS: dict[str, dict[str, Any]] = {
    "open": {"grid": 4},
    "no-spatial": {"parts": ["self", "cross"]},
    "no-cross": {"parts": ["self", "spatial"]},
    "no-self": {"parts": ["cross", "spatial"]},
    "values": {"acts_on": "values"},
    "soft": {"hard": 0.0},
    "blind": {"question": False},
}
FIXED = {
    144: (
        "pyramiddrop:mean=144@2,4,8",
        "pyramiddrop:58@2",
        "fastv:58@2",
        "pool:58@2",
        "stride:58@2",
        "atp:mean=144:theta_s=1.0@2,4,8",
        "atp:58:theta_s=1.0@2",
    ),
    86: (
        "pyramiddrop:mean=86@1,2,6",
        "fastv:42@1",
        "pool:42@1",
        "stride:42@1",
        "stride:192@1+fastv:27@2",
        "stride:0.5+fastv:49@2",
        "atp:mean=86:theta_s=1.0@1,2,6",
    ),
}
STARTS: dict[str, tuple[str, ...]] = {"start": ("self", "cross", "spatial")}
PARTS = ("open", "no-spatial", "no-self", "no-cross")
"""Variants that differ in the scores that count."""
JOINT = ("144-tokens-lora", "86-tokens-lora", "halved-lora")
"""Configurations on a model that was trained along with its thresholds."""
MEANS = {
    144: ("144-tokens", *STARTS, *VARIANTS, "144-tokens-lora"),
    86: ("86-tokens", "halved", "86-tokens-lora", "halved-lora"),
}
CONTROL = "atp:58:theta_s=1.0@2"
"""The fixed rule under which LoRA was trained for comparison."""
POINTS = {
    "received": "as we do: logits received, attention from text, both stretched",
    "given": "logits given",
    "softmax": "softmax of the logits, nothing stretched",
    "self": "logits alone",
    "cross": "attention from text alone",
    "grid": "the sparsest grid first (36), then as we do",
}
TITLES = {
    "144-tokens": "**learned**, `mean={mean}`",
    "86-tokens": "**learned**, `mean={mean}`, layers 1, 2, 6",
    "halved": "**learned** for 144, behind half the tokens: `stride:0.5+atp:mean={mean}`",
    "144-tokens-lora": "**learned along with the model**, `mean={mean}`",
    "86-tokens-lora": "**learned along with the model**, `mean={mean}`, layers 1, 2, 6",
    "halved-lora": "learned along with the model for 144, behind half the tokens",
    "start": "its start: equal thresholds, untrained",
    "open": "learned from a start with the sparsest grid open (`grid: 4`)",
    "no-spatial": "learned without spatial score",
    "no-cross": "learned without attention from text",
    "no-self": "learned without logits from the image",
    "values": "learned with masks on values",
    "soft": "learned without hard masks at the end",
    "blind": "learned without the question's hidden state",
}
OTHER = (120, 200)
"""Means that the adapter trained for 144 is asked for, too."""
DRAWN = ("learned 144 144-tokens", "learned 144 144-tokens-lora", "learned 86 86-tokens")
"""Whose budgets are told in full; the first is drawn."""
COMPARED = {
    "learned 144 144-tokens": "Learned, at 144,",
    "learned 144 144-tokens-lora": "Learned along with the model, at 144,",
    "learned 86 86-tokens": "Learned, at 86,",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
SKIP = 500
"""Test scenes that are left out: settings were chosen on earlier ones."""
CHOICE = (470, 250)
"""From which scene on, before `SKIP`, and on how many questions a start with a grid is compared with one without."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("start", "train", "choose", "measure", "points", "draw", "report"))
    parser.add_argument("--only", help="names of configurations or variants, parted by semicolons")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "atp", help="where adapters and answers lie")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    only = arguments.only.split(";") if arguments.only else None
    if arguments.part == "start":
        start(arguments.work, only)
    elif arguments.part == "train":
        train(arguments.work, only)
    elif arguments.part == "draw":
        draw_kept(arguments.work, arguments.out, arguments.questions)
    elif arguments.part == "report":
        report(arguments.work, arguments.out)
    else:
        chosen = points() if arguments.part == "points" else configurations(arguments.work)
        if arguments.part == "choose":
            chosen = {name: chosen[name] for name in ("learned 144 144-tokens", "learned 144 open") if name in chosen}
        chosen = {name: each for name, each in chosen.items() if only is None or name in only}
        if arguments.part == "choose":
            measure(chosen, arguments.work / "choice", CHOICE[1], CHOICE[0])
            write_whole(arguments.work / "choice" / "by-place.json", json.dumps(by_place(arguments.work)) + "\n")
        else:
            measure(chosen, arguments.work / "answers", arguments.questions, SKIP)
    return 0


# Training


@torch.no_grad()
def start(work: Path, only: list[str] | None) -> None:
    """Thresholds that are equal for all images, moved to the target: what training starts from."""
    model, processor = foveate.reference()
    collate, rows = Batches(processor, family_of(model)), Scenes(32, turns=1, first=204_000)
    batches = []
    for begin in range(0, len(rows), 8):
        batch = collate([(number, rows[number]) for number in range(begin, begin + 8)])
        batches.append({name: value for name, value in batch.items() if name not in ("rows", "tokens")})
    for name, parts in STARTS.items():
        if (only is None or name in only) and not (work / name / "atp" / "atp.json").exists():
            adapter = foveate.ATP(model, (2, 4, 8), parts=parts)
            adapter.prepare(model, batches, 0.25)
            print(name, adapter.calibrate(model, batches, (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)), flush=True)
            adapter.save_pretrained(work / name / "atp")


def train(work: Path, only: list[str] | None) -> None:
    """Every adapter that isn't there, one behind another."""
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


# Measuring


@dataclass(frozen=True)
class Configuration:
    """What is applied, to which model (None for the embedded one), and what is changed about the engine meanwhile."""

    spec: foveate.Spec | None
    model: Path | None = None
    given: bool = False


def configurations(work: Path) -> dict[str, Configuration]:
    """Dense, fixed schedules, and the adapters that have been trained, at the means that they were trained for."""
    found = {"dense": Configuration(None)}
    for specs in FIXED.values():
        found |= {spec: Configuration(foveate.parse(spec)) for spec in specs}
    adapters = {name: work / name / "atp" for names in MEANS.values() for name in names}
    for halved, whole in (("halved", "144-tokens"), ("halved-lora", "144-tokens-lora")):
        adapters[halved] = work / whole / "atp"
    for mean, names in MEANS.items():
        for name in names:
            folder = adapters[name]
            if (folder / "atp.json").exists():
                steps = foveate.ATP.from_pretrained(folder).spec(mean=mean).steps
                if name.startswith("halved"):
                    steps = (*foveate.parse("stride:0.5").steps, *steps)
                model = folder.parent / "model" if name in JOINT else None
                found[f"learned {mean} {name}"] = Configuration(foveate.Spec(steps), model)
    if (work / "144-tokens" / "atp" / "atp.json").exists():
        adapter = foveate.ATP.from_pretrained(work / "144-tokens" / "atp")
        found |= {f"learned {mean} 144-tokens": Configuration(adapter.spec(mean=mean)) for mean in OTHER}
    control = work / "fixed-lora" / "model"
    if control.exists():
        found |= {
            "fixed-lora": Configuration(foveate.parse(CONTROL), control),
            "fixed-lora dense": Configuration(None, control),
        }
    return found


class Reading(ATPMethod):
    """The rule with another reading of its scores; not registered."""

    reading = "received"

    def scores(self, tokens: Any, alive: Any = None) -> Any:
        logits = tokens.signals[self.needs[0]].float()
        attention = tokens.signals[self.needs[1]].float().mean(dim=1)
        if self.reading == "softmax":
            return (logits.softmax(dim=1) + attention) / 2, logits
        stretched = [(x - x.amin(1, True)) / (x.amax(1, True) - x.amin(1, True)) for x in (logits, attention)]
        chosen = {"self": stretched[:1], "cross": stretched[1:]}.get(self.reading, stretched)
        return torch.stack(chosen).mean(dim=0), logits


def points() -> dict[str, Configuration]:
    """The open points that need no training: 58 tokens from layer 2 on, by one reading each."""
    found = {}
    for name in POINTS:
        kind = type(f"Reading{name}", (Reading,), {"reading": name})
        # With the grid, tokens of the sparsest one come first, and the others by redundancy.
        method = kind(
            keep=foveate.Keep.of(58), theta_s=0.0 if name == "grid" else 1.0, theta_r=1.0 if name == "grid" else 0.0
        )
        found[f"point {name}"] = Configuration(foveate.Spec((foveate.Step(method, (2,)),)), given=name == "given")
    return found


def logits_given(query: Any, key: Any, scale: float, weight: Any = None) -> Any:
    """Mean pre-softmax logit that each token gives to those at or before it: the other direction of Eq. 3."""
    before = key.float().cumsum(dim=1) / torch.arange(1, key.shape[1] + 1)[:, None, None]
    before = before.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return (query.float() * before).sum(dim=(2, 3)) * (scale / query.shape[2])


@torch.no_grad()
def measure(chosen: dict[str, Configuration], folder: Path, questions: int, skip: int) -> None:
    """Append to one file per configuration, picture by picture."""
    model, processor = foveate.reference()
    trained = {one.model: load(one.model)[0] for one in chosen.values() if one.model is not None}
    family = family_of(model)
    collate = Batches(processor, family)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{stem(name)}.jsonl" for name in chosen}
    done = {name: Counter(line["scene"] for line in lines_of(path)) for name, path in files.items()}
    for number, scene in enumerate(test_set(questions, skip)):
        missing = [name for name in chosen if done[name][scene.id] < len(scene.questions)]
        for name in missing:
            if done[name][scene.id]:
                # Fewer questions were asked for, and this scene was the last one.
                kept = [line for line in files[name].read_text().splitlines() if json.loads(line)["scene"] != scene.id]
                write_whole(files[name], "".join(f"{line}\n" for line in kept))
        if not missing:
            continue
        batch = batch_of(scene, collate)
        # LoRA leaves the vision side as it was.
        encoded = foveate.encode(model, {"pixel_values": batch["pixel_values"][:1]})
        rows = len(batch["labels"])
        for name in missing:
            one = chosen[name]
            used = model if one.model is None else trained[one.model]
            outputs = foveate.engine.encoder_outputs(used, encoded.pick([0] * rows))
            lines = answers(used, batch, outputs, one, scene)
            with files[name].open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{number} {scene.id} {len(missing)} configurations", flush=True)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def batch_of(scene: Scene, collate: Batches) -> dict[str, Any]:
    """All questions about a scene with their answers, one row each."""
    rows = []
    for question in scene.questions:
        messages = (
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]},
            {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
        )
        rows.append((0, Conversation(scene.id, (scene.image,), messages)))
    return collate(rows)


def answers(model: Any, batch: dict[str, Any], outputs: Any, one: Configuration, scene: Scene) -> list[dict[str, Any]]:
    """Per question: whether the answer is right, and the tokens in each layer."""
    call = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    call |= {"mm_encoder_outputs": outputs, "use_cache": False}
    received = signals.logits_received
    signals.logits_received = logits_given if one.given else received
    try:
        if one.spec is None:
            logits, layers = model(**call).logits, [(576,) * 12] * len(batch["labels"])
        else:
            with foveate.apply(model, one.spec) as applied:
                logits = model(**call).logits
            layers = [image.layers for image in applied.report().images]
    finally:
        signals.logits_received = received
    labels = batch["labels"][:, 1:]
    right = ((logits[:, :-1].argmax(dim=-1) == labels) | (labels == IGNORE)).all(dim=1).tolist()
    return [
        {
            "scene": scene.id,
            "things": len(scene.things),
            "kind": scene.kind,
            "skill": question.skill,
            "right": bool(good),
            "layers": list(layer),
        }
        for question, good, layer in zip(scene.questions, right, layers, strict=True)
    ]


# Reporting


def report(work: Path, out: Path) -> None:
    """One JSON with every figure of the page, and a plot of budgets against needs."""
    lines = {path.stem: lines_of(path) for path in sorted((work / "answers").glob("*.jsonl"))}
    whole = min(len(each) for each in lines.values())
    lines = {name: each[:whole] for name, each in lines.items()}
    dense = lines["dense"]
    scenes = [line["scene"] for line in dense]
    found = {"questions": whole, "scenes": len({*scenes}), "skipped_scenes": SKIP, "configurations": {}, "needs": {}}
    for name, each in lines.items():
        assert [line["scene"] for line in each] == scenes, name
        right, reference = ([float(line["right"]) for line in some] for some in (each, dense))
        layers = [st.fmean(line["layers"][layer] for line in each) for layer in range(12)]
        skills = defaultdict(list)
        for line in each:
            skills[line["skill"]].append(float(line["right"]))
        found["configurations"][name] = {
            "accuracy": mean_interval(right, scenes).to_dict(),
            "to_dense": difference_interval(right, reference, scenes).to_dict(),
            "mean_tokens": st.fmean(layers),
            "layers": [round(count, 1) for count in layers],
            "prefill_gflops": prefill(layers) / 1e9,
            "skills": {skill: {"accuracy": st.fmean(some), "questions": len(some)} for skill, some in skills.items()},
        }
        if name in DRAWN:
            found["needs"][name] = needs(each)
    for ours in COMPARED:
        if ours in lines:
            mean = int(ours.split()[1])
            right = [float(line["right"]) for line in lines[ours]]
            rivals = [key for key in lines if key.startswith(f"learned {mean} ") and key != ours]
            rivals += [*(stem(spec) for spec in FIXED[mean]), "fixed-lora"]
            found["configurations"][ours]["to_rivals"] = {
                name: difference_interval(right, [float(line["right"]) for line in lines[name]], scenes).to_dict()
                for name in rivals
                if name in lines
            }
    choice = {path.stem: lines_of(path) for path in sorted((work / "choice").glob("*.jsonl"))}
    if choice:
        found["choice"] = chosen(choice) | {"by_place": json.loads((work / "choice" / "by-place.json").read_text())}
    for name in (*LEARNED, *VARIANTS):
        history = work / name / "run.json"
        if history.exists():
            found.setdefault("training", {})[name] = json.loads(history.read_text())["history"]
    (out / "measured").mkdir(parents=True, exist_ok=True)
    write_whole(out / "measured" / "atp.json", json.dumps(found, indent=1) + "\n")
    for name, each in sorted(found["configurations"].items(), key=lambda pair: -pair[1]["accuracy"]["value"]):
        print(
            f"{name:45} {each['accuracy']['value']:.1%} {each['mean_tokens']:6.1f} {each['prefill_gflops']:.2f} GFLOPs"
        )
    if DRAWN[0] in lines:
        plot(found["needs"][DRAWN[0]], out / "pictures" / "atp.png")
    page = out / "atp.md"
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(before + BEGIN + tables(found) + END + rest.partition(END)[2])


def chosen(lines: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What starts open beside what starts closed, on other scenes."""
    whole = min(len(each) for each in lines.values())
    scenes = [line["scene"] for line in next(iter(lines.values()))[:whole]]
    right = {name: [float(line["right"]) for line in each[:whole]] for name, each in lines.items()}
    given = {"questions": whole, "scenes": len({*scenes}), "accuracy": {key: st.fmean(x) for key, x in right.items()}}
    pair = [right[name] for name in ("learned 144 open", "learned 144 144-tokens") if name in right]
    if len(pair) == 2:
        given["open_minus_closed"] = difference_interval(*pair, scenes).to_dict()
    return given


def tables(found: dict[str, Any]) -> str:
    """The measured part of the page, from the JSON."""
    every = found["configurations"]
    dense = every["dense"]
    text = (
        f"\n## What it measures\n\nThe embedded model, {found['questions']} questions about {found['scenes']} scenes "
        f"of the test set, behind the first {found['skipped_scenes']}. `python benchmarks/atp.py start`, `train`, "
        "`measure`, `points` and `report` make these tables. Accuracy, and its difference to dense (paired, 95 % "
        f"interval by scene). Dense: {dense['accuracy']['value']:.1%}, {dense['prefill_gflops']:.2f} GFLOPs.\n"
    )
    head = "accuracy | to dense | tokens | GFLOPs | count | other skills |\n|:--|--:|--:|--:|--:|--:|--:|\n"
    for mean, names in MEANS.items():
        rows = {f"`{spec}`": stem(spec) for spec in FIXED[mean]}
        rows |= {TITLES[name].format(mean=mean): f"learned {mean} {name}" for name in names if name not in VARIANTS}
        if mean == 144:
            rows |= {f"the same adapter, `mean={other}`": f"learned {other} 144-tokens" for other in OTHER}
            rows |= {f"LoRA trained under `{CONTROL}`": "fixed-lora", "the same model, dense": "fixed-lora dense"}
        text += f"\n| at {mean} tokens per layer | {head}"
        text += "".join(row(title, every[key]) for title, key in rows.items() if key in every)
    for ours, title in COMPARED.items():
        mean = int(ours.split()[1])
        rivals = every.get(ours, {}).get("to_rivals", {})
        given = {f"`{spec}`": stem(spec) for spec in FIXED[mean]}
        if ours.endswith("-lora"):
            given |= {"LoRA under the fixed rule": "fixed-lora", "thresholds alone": "learned 144 144-tokens"}
        each = [f"{name} {interval(rivals[key])}" for name, key in given.items() if key in rivals]
        if each:
            text += f"\n{title} minus each of these, paired: {', '.join(each)}.\n"
    rivals = every.get("learned 144 144-tokens", {}).get("to_rivals", {})
    variants = {name: rivals[f"learned 144 {name}"] for name in VARIANTS if f"learned 144 {name}" in rivals}
    if variants:
        text += f"\n| trained otherwise, at 144 | ours minus it | {head.replace('--:|', '--:|--:|', 1)}"
    for name, apart in variants.items():
        text += row(f"{TITLES[name]} | {interval(apart)}", every[f"learned 144 {name}"])
    if "open_minus_closed" in found.get("choice", {}):
        choice = found["choice"]
        both = [choice["accuracy"][f"learned 144 {name}"] for name in ("open", "144-tokens")]
        text += (
            f"\nOn {choice['questions']} questions about {choice['scenes']} other scenes, from {CHOICE[0]} on, "
            f"the grid open at first had {both[0]:.1%} and the grid closed {both[1]:.1%}, difference "
            f"{interval(choice['open_minus_closed'])}.\n"
        )
        for name, start in (("open", "open at first"), ("144-tokens", "closed at first")):
            each = [
                f"at layer {one['layer']} for {one['open']:.0%} of the questions, {one['tokens']:.0f} tokens"
                for one in choice["by_place"][name]
            ]
            text += f"\nTokens that stay for their place alone, {start}: {'; '.join(each)}.\n"
    text += f"\n| 58 tokens from layer 2 on, by score | {head}"
    text += "".join(row(POINTS[name], every[f"point {name}"]) for name in POINTS if f"point {name}" in every)
    for name in DRAWN:
        if name in found["needs"]:
            need, (_, mean, key) = found["needs"][name], name.split()
            spread = need["tokens"]
            text += (
                f"\nTokens per layer, {TITLES[key].format(mean=mean)}: from {spread['least']:.0f} "
                f"to {spread['most']:.0f}, standard deviation {spread['spread']:.0f}. Rank correlation with the number "
                f"of things in the scene: {need['rank_correlation_with_things']:.2f}. By what is asked: "
                f"{ordered(need['by_skill'])}. By kind of scene: {ordered(need['by_kind'])}.\n"
            )
    return (
        f"{text}\n![Tokens against things in the scene, and by skill](pictures/atp.png)\n\n"
        "![Tokens that stay of three scenes, from the emptiest to the fullest](pictures/atp-kept.png)\n\n"
        "The emptiest of these scenes, one in the middle and the fullest, and what is left of each from the layers on "
        "where thresholds act (`python benchmarks/atp.py draw`).\n\n"
    )


def ordered(counts: dict[str, Any]) -> str:
    most = sorted(counts.items(), key=lambda pair: -pair[1]["value"])
    return ", ".join(f"{key} {count['value']:.0f}" for key, count in most)


def interval(apart: dict[str, Any]) -> str:
    low, high = (0.0 if each is None else each for each in (apart["low"], apart["high"]))
    return f"{apart['value']:+.1%} [{low:+.1%}, {high:+.1%}]"


def row(title: str, one: dict[str, Any]) -> str:
    count = [each for skill, each in one["skills"].items() if skill == "count"]
    other = [each for skill, each in one["skills"].items() if skill != "count"]
    shares = []
    for some in (count, other):
        asked = sum(each["questions"] for each in some)
        shares.append(f"{sum(each['accuracy'] * each['questions'] for each in some) / asked:.1%}" if asked else "")
    return (
        f"| {title} | {one['accuracy']['value']:.1%} | {interval(one['to_dense'])} | "
        f"{one['mean_tokens']:.0f} | {one['prefill_gflops']:.2f} | {shares[0]} | {shares[1]} |\n"
    )


def stem(name: str) -> str:
    return name.replace(":", "_").replace("@", "_at_")


def prefill(layers: list[float]) -> float:
    """FLOPs of the prefill of a prompt of 20 text tokens, with so many visual tokens in each layer."""
    changes = [layer for layer in range(1, 12) if round(layers[layer]) != round(layers[layer - 1])]
    keeps = "/".join(str(max(1, round(layers[layer]))) for layer in changes)
    steps = [f"pool:{round(layers[0])}"] if round(layers[0]) < 576 else []
    steps += [f"pool:{keeps}@{','.join(map(str, changes))}"] if changes else []
    spec = "+".join(steps) or None
    return cost(None, spec, images=[(192, 192)], text_tokens=20, new_tokens=1).part("prefill").flops


def needs(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether budgets follow what there is to see and what is asked."""
    tokens = [st.fmean(line["layers"]) for line in lines]
    groups: dict[str, dict[str, tuple[list[float], list[str]]]] = {"skill": {}, "kind": {}}
    scenes: dict[str, list[float]] = defaultdict(list)
    about = {line["scene"]: (line["things"], line["kind"]) for line in lines}
    for line, count in zip(lines, tokens, strict=True):
        for group, values in groups.items():
            counts, where = values.setdefault(line[group], ([], []))
            counts.append(count / 576)
            where.append(line["scene"])
        scenes[line["scene"]].append(count)
    each = [[*about[name], st.fmean(counts), min(counts), max(counts)] for name, counts in scenes.items()]
    return {
        "tokens": {"mean": st.fmean(tokens), "least": min(tokens), "most": max(tokens), "spread": st.pstdev(tokens)},
        "rank_correlation_with_things": correlation(ranks([one[0] for one in each]), ranks([one[2] for one in each])),
        "scenes": [[things, kind, *(round(count, 1) for count in counts)] for things, kind, *counts in each],
        **{
            f"by_{group}": {key: in_tokens(*some) for key, some in sorted(values.items())}
            for group, values in groups.items()
        },
    }


def in_tokens(shares: list[float], scenes: list[str]) -> dict[str, float | None]:
    """The mean of shares of 576 tokens with its interval by scene, in tokens."""
    apart = difference_interval(shares, [0.0] * len(shares), scenes).to_dict()
    return {end: None if value is None else 576 * value for end, value in apart.items()}


def ranks(values: list[float]) -> list[float]:
    """Ranks from 0, equal values sharing theirs."""
    order = sorted(values)
    places: dict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(order):
        places[value].append(place)
    return [st.fmean(places[value]) for value in values]


def correlation(one: list[float], other: list[float]) -> float:
    a, b = st.fmean(one), st.fmean(other)
    together = sum((x - a) * (y - b) for x, y in zip(one, other, strict=True))
    apart = math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in other))
    return together / apart if apart else 0.0


def plot(need: dict[str, Any], path: Path) -> None:
    """Two panels: tokens of each scene against what is in it, and tokens by what is asked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    kinds = sorted({kind for _, kind, *_ in need["scenes"]})
    for colour, kind in zip(COLOURS, kinds, strict=False):
        some = [one for one in need["scenes"] if one[1] == kind]
        x, mean = [one[0] for one in some], [one[2] for one in some]
        left.vlines(x, [one[3] for one in some], [one[4] for one in some], color=colour, linewidth=1.2, alpha=0.35)
        left.plot(x, mean, "o", color=colour, markersize=5.5, label=kind)
    left.set_title(
        f"by what is there: rank correlation {need['rank_correlation_with_things']:.2f}",
        loc="left",
        fontsize=10.5,
        fontweight="bold",
    )
    left.set_xlabel("things in the scene (a point per scene, a line over its questions)")
    left.set_ylabel("tokens kept per layer, of 576")
    left.legend(fontsize=8, ncols=2, framealpha=0.9, edgecolor="none", title="kind of scene", title_fontsize=8)
    skills = sorted(need["by_skill"].items(), key=lambda pair: pair[1]["value"])
    for place, (_, one) in enumerate(skills):
        low, high = (one["value"] if one[end] is None else one[end] for end in ("low", "high"))
        right.plot([low, high], [place, place], color=COLOURS[0], linewidth=2.2, alpha=0.4, solid_capstyle="round")
        right.plot([one["value"]], [place], "o", color=COLOURS[0], markersize=6)
        right.annotate(
            f"{one['value']:.0f}", (one["value"], place), (0, 6), textcoords="offset points", fontsize=8, ha="center"
        )
    mean = need["tokens"]["mean"]
    right.axvline(mean, color="#8a8a8a", linewidth=1, linestyle="--", zorder=0)
    right.annotate(f"mean {mean:.0f}", (mean, -0.75), (4, 0), textcoords="offset points", fontsize=8, va="center")
    right.set_yticks(range(len(skills)), [name.replace("_", " ") for name, _ in skills])
    right.set_ylim(-1, len(skills) - 0.4)
    right.set_title("by what is asked, with 95 % intervals", loc="left", fontsize=10.5, fontweight="bold")
    right.set_xlabel("tokens kept per layer, of 576")
    for axes, along in ((left, "y"), (right, "x")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=along, alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".part.png"))
    path.with_suffix(".part.png").replace(path)


# Looking inside


@dataclass(frozen=True)
class Shown(ATPLayer):
    """The rule at one layer of an adapter, which remembers what it kept and why; not registered."""

    slots: list[torch.Tensor] = field(default_factory=list, compare=False)
    by_place: list[int] = field(default_factory=list, compare=False)
    """Of each image the tokens that pass by where they stand, and by nothing else."""

    def plan(self, tokens: Any) -> Any:
        plan = super().plan(tokens)
        self.slots.append(plan.slot if tokens.origin is None else tokens.origin.slot.gather(1, plan.slot))
        redundancy, looks = self.scores(tokens)
        theta_r, theta_s = self.predicted(looks, tokens.signals[Text()][:, -1])
        self.by_place.extend(((self.spatial(tokens) > theta_s) & (redundancy <= theta_r)).sum(dim=1).tolist())
        return plan

    @classmethod
    def layers_of(cls, adapter: foveate.ATP, mean: int) -> list[Shown]:
        """All layers of an adapter, asked for a mean."""
        shift = adapter.shift(mean / 576)
        return [cls(adapter=adapter, number=number, shift=shift) for number in range(len(adapter.layers))]


@torch.no_grad()
def by_place(work: Path, questions: int = 60) -> dict[str, Any]:
    """How often a grid is open, and the tokens that stay for their place alone, per layer of the adapters."""
    model, processor = foveate.reference()
    collate = Batches(processor, family_of(model))
    found = {}
    for name in ("144-tokens", "open"):
        if (work / name / "atp" / "atp.json").exists():
            adapter = foveate.ATP.from_pretrained(work / name / "atp")
            layers = Shown.layers_of(adapter, 144)
            spec = foveate.Spec(tuple(foveate.Step(layer) for layer in layers))
            for scene in test_set(questions, CHOICE[0]):
                batch = batch_of(scene, collate)
                encoded = foveate.encode(model, {"pixel_values": batch["pixel_values"][:1]})
                outputs = foveate.engine.encoder_outputs(model, encoded.pick([0] * len(scene.questions)))
                answers(model, batch, outputs, Configuration(spec), scene)
            found[name] = [
                {"layer": at, "open": st.fmean(count > 0 for count in one.by_place), "tokens": st.fmean(one.by_place)}
                for at, one in zip(adapter.layers, layers, strict=True)
            ]
    return found


@torch.no_grad()
def draw_kept(work: Path, out: Path, questions: int) -> None:
    """Three scenes, from the emptiest to the fullest: what stays of each from the adapter's layers on."""
    model, processor = foveate.reference()
    collate = Batches(processor, family_of(model))
    adapter = foveate.ATP.from_pretrained(work / "144-tokens" / "atp")
    # Of all of them the same is asked.
    asked = [
        (scene, question)
        for scene in test_set(questions, SKIP)
        for question in scene.questions
        if question.skill == "count"
    ]
    asked.sort(key=lambda pair: len(pair[0].things))
    sheets = []
    for scene, question in (asked[0], asked[len(asked) // 2], asked[-1]):
        batch = batch_of(replace(scene, questions=(question,)), collate)
        layers = Shown.layers_of(adapter, 144)
        outputs = foveate.engine.encoder_outputs(model, foveate.encode(model, {"pixel_values": batch["pixel_values"]}))
        call = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with foveate.apply(model, foveate.Spec(tuple(foveate.Step(layer) for layer in layers))) as applied:
            model(**call, mm_encoder_outputs=outputs, use_cache=False)
        (image,) = applied.report().images
        layout = Layout((Segment(1, 24, 24),))
        ends = [*(layer - 1 for layer in adapter.layers), len(image.layers) - 1]
        panels = [Panel(layout, f"layers 0 to {ends[0]}", "all 576 tokens")]
        for begin, end, layer in zip(adapter.layers, ends[1:], layers, strict=True):
            (slot,) = layer.slots
            panels.append(Panel(layout, f"layers {begin} to {end}", f"{slot.shape[1]} tokens", Plan(slot=slot)))
        things = f"{len(scene.things)} things" if len(scene.things) > 1 else "one thing"
        heading = f"{question.text}  ({things}: {image.mean_over_layers:.0f} tokens per layer)"
        sheets.append(draw(scene.image, panels, heading, side=300))
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)))
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    save_picture(whole, out / "pictures" / "atp-kept.png")


if __name__ == "__main__":
    sys.exit(main())
