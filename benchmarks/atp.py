#!/usr/bin/env python3
"""What learned budgets are worth on the embedded model: `python benchmarks/atp.py PART`.

    start    adapters before any training, which training begins with
    train    train the adapters that are missing (recipes/atp and their variants); goes on where it was interrupted
    measure  answers and tokens of every configuration, question by question; goes on where it was interrupted
    points   the rule with other readings of the paper's scores, nothing trained
    report   docs/measured/atp.json and docs/pictures/atp.png from what was measured

An answer is right if the model's most likely token is the right one at each step up to the end of the answer; prompt
and answer go through the model at once, and the plan sees the prompt alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics as st
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import foveate
from foveate.bench.results import write_whole
from foveate.bench.statistics import difference_interval, mean_interval
from foveate.cost import cost
from foveate.engine import signals
from foveate.methods.atp import ATP
from foveate.models import family_of
from foveate.scenes import Scene, test_set
from foveate.train.batches import IGNORE, Batches
from foveate.train.recipe import parse_recipe
from foveate.train.run import run
from foveate.train.sources import Conversation, Scenes

ROOT = Path(__file__).parents[1]
LEARNED = {
    "144-tokens": "144-tokens.yaml",
    "86-tokens": "86-tokens.yaml",
}
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
MEANS = {144: ("144-tokens", *STARTS, *VARIANTS), 86: ("86-tokens", "halved")}
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
    "start": "its start: equal thresholds, untrained",
    "open": "learned, the sparsest grid staying at first",
    "no-spatial": "learned without spatial score",
    "no-cross": "learned without attention from text",
    "no-self": "learned without logits from the image",
    "values": "learned with masks on values",
    "soft": "learned without hard masks at the end",
    "blind": "learned without the question's hidden state",
}
OTHER = (120, 200)
"""Means that the adapter trained for 144 is asked for, too."""
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
SKIP = 500
"""Test scenes that are left out: settings were chosen on earlier ones."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("start", "train", "measure", "points", "report"))
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
    elif arguments.part == "report":
        report(arguments.work, arguments.out)
    else:
        chosen = configurations(arguments.work) if arguments.part == "measure" else points()
        chosen = {name: each for name, each in chosen.items() if only is None or name in only}
        measure(chosen, arguments.work / "answers", arguments.questions)
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
    given = yaml.safe_load((ROOT / "recipes" / "atp" / LEARNED["144-tokens"]).read_text())
    recipes = {name: yaml.safe_load((ROOT / "recipes" / "atp" / file).read_text()) for name, file in LEARNED.items()}
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
    """What is applied, and what is changed about the engine meanwhile."""

    spec: foveate.Spec | None
    given: bool = False


def configurations(work: Path) -> dict[str, Configuration]:
    """Dense, fixed schedules, and the adapters that have been trained, at the means that they were trained for."""
    found = {"dense": Configuration(None)}
    for specs in FIXED.values():
        found |= {spec: Configuration(foveate.parse(spec)) for spec in specs}
    for mean, names in MEANS.items():
        for name in names:
            if (work / name / "atp" / "atp.json").exists():
                adapter = foveate.ATP.from_pretrained(work / name / "atp")
                found[f"learned {mean} {name}"] = Configuration(adapter.spec(mean=mean))
    if (work / "144-tokens" / "atp" / "atp.json").exists():
        adapter = foveate.ATP.from_pretrained(work / "144-tokens" / "atp")
        halved = (*foveate.parse("stride:0.5").steps, *adapter.spec(mean=86).steps)
        found["learned 86 halved"] = Configuration(foveate.Spec(halved))
        found |= {f"learned {mean} 144-tokens": Configuration(adapter.spec(mean=mean)) for mean in OTHER}
    return found


class Reading(ATP):
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
        found[f"point {name}"] = Configuration(foveate.Spec((foveate.Step(method, (2,)),)), name == "given")
    return found


def logits_given(query: Any, key: Any, scale: float, weight: Any = None) -> Any:
    """Mean pre-softmax logit that each token gives to those at or before it: the other direction of Eq. 3."""
    before = key.float().cumsum(dim=1) / torch.arange(1, key.shape[1] + 1)[:, None, None]
    before = before.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return (query.float() * before).sum(dim=(2, 3)) * (scale / query.shape[2])


def pictures(questions: int) -> Iterator[Scene]:
    yield from test_set(questions, SKIP)


@torch.no_grad()
def measure(chosen: dict[str, Configuration], folder: Path, questions: int) -> None:
    """Append to one file per configuration, picture by picture."""
    model, processor = foveate.reference()
    family = family_of(model)
    collate = Batches(processor, family)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{stem(name)}.jsonl" for name in chosen}
    done = {
        name: {json.loads(line)["scene"] for line in path.read_text().splitlines()} if path.exists() else set()
        for name, path in files.items()
    }
    for number, scene in enumerate(pictures(questions)):
        missing = [name for name in chosen if scene.id not in done[name]]
        if not missing:
            continue
        batch = batch_of(scene, collate)
        encoded = foveate.encode(model, {"pixel_values": batch["pixel_values"][:1]})
        rows = len(batch["labels"])
        for name in missing:
            outputs = foveate.engine.encoder_outputs(model, encoded.pick([0] * rows))
            lines = answers(model, batch, outputs, chosen[name], scene)
            with files[name].open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{number} {scene.id} {len(missing)} configurations", flush=True)


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
    files = {path.stem: path for path in sorted((work / "answers").glob("*.jsonl"))}
    lines = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}
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
        if name.startswith("learned"):
            found["needs"][name] = needs(each)
    for mean, names in MEANS.items():
        ours = f"learned {mean} {names[0]}"
        if ours in lines:
            right = [float(line["right"]) for line in lines[ours]]
            rivals = [key for key in lines if key.startswith(f"learned {mean} ") and key != ours]
            rivals += [stem(spec) for spec in FIXED[mean]]
            found["configurations"][ours]["to_rivals"] = {
                name: difference_interval(right, [float(line["right"]) for line in lines[name]], scenes).to_dict()
                for name in rivals
                if name in lines
            }
    for name in LEARNED:
        history = work / name / "run.json"
        if history.exists():
            found.setdefault("training", {})[name] = json.loads(history.read_text())["history"]
    (out / "measured").mkdir(parents=True, exist_ok=True)
    write_whole(out / "measured" / "atp.json", json.dumps(found, indent=1) + "\n")
    for name, each in sorted(found["configurations"].items(), key=lambda pair: -pair[1]["accuracy"]["value"]):
        print(
            f"{name:45} {each['accuracy']['value']:.1%} {each['mean_tokens']:6.1f} {each['prefill_gflops']:.2f} GFLOPs"
        )
    if any(name.startswith("learned") for name in lines):
        plot(lines, out / "pictures" / "atp.png")
    page = out / "atp.md"
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(before + BEGIN + tables(found) + END + rest.partition(END)[2])


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
    for mean in MEANS:
        rows = {spec: stem(spec) for spec in FIXED[mean]}
        rows = {f"`{name}`": key for name, key in rows.items()}
        rows |= {TITLES[name].format(mean=mean): f"learned {mean} {name}" for name in MEANS[mean]}
        text += f"\n| at {mean} tokens per layer | accuracy | to dense | tokens | GFLOPs | count | other skills |\n"
        text += "|:--|--:|--:|--:|--:|--:|--:|\n"
        if mean == 144:
            rows |= {f"the same adapter, `mean={other}`": f"learned {other} 144-tokens" for other in OTHER}
        text += "".join(row(title, every[key]) for title, key in rows.items() if key in every)
    for mean, names in MEANS.items():
        rivals = every.get(f"learned {mean} {names[0]}", {}).get("to_rivals", {})
        given = {spec: rivals[stem(spec)] for spec in FIXED[mean] if stem(spec) in rivals}
        if given:
            each = [
                f"`{spec}` {one['value']:+.1%} [{one['low']:+.1%}, {one['high']:+.1%}]" for spec, one in given.items()
            ]
            text += f"\nThe learned one at {mean} minus each fixed one, paired: {', '.join(each)}.\n"
    text += "\n| 58 tokens from layer 2 on, by score | accuracy | to dense | tokens | GFLOPs | count | other skills |\n"
    text += "|:--|--:|--:|--:|--:|--:|--:|\n"
    text += "".join(row(POINTS[name], every[f"point {name}"]) for name in POINTS if f"point {name}" in every)
    for name, need in found["needs"].items():
        if name.split()[2] in LEARNED and int(name.split()[1]) in MEANS:
            spread = need["tokens"]
            text += (
                f"\nTokens per layer of the trained adapter at {name.split()[1]}: from {spread['least']:.0f} to "
                f"{spread['most']:.0f}, standard deviation {spread['spread']:.0f}. Rank correlation with the number of "
                f"things in the scene: {need['rank_correlation_with_things']:.2f}. By what is asked: "
                f"{ordered(need['by_skill'])}. By kind of scene: {ordered(need['by_kind'])}.\n"
            )
    return text + "\n![Tokens against things in the scene, and by skill](pictures/atp.png)\n\n"


def ordered(counts: dict[str, float]) -> str:
    return ", ".join(f"{key} {count:.0f}" for key, count in sorted(counts.items(), key=lambda pair: -pair[1]))


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
    groups: dict[str, dict[str, list[float]]] = {"skill": defaultdict(list), "kind": defaultdict(list)}
    scenes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line, count in zip(lines, tokens, strict=True):
        for group, values in groups.items():
            values[line[group]].append(count)
        scenes[line["scene"]].append((line["things"], count))
    means = [(some[0][0], st.fmean(count for _, count in some)) for some in scenes.values()]
    return {
        "tokens": {"least": min(tokens), "most": max(tokens), "spread": st.pstdev(tokens)},
        "rank_correlation_with_things": correlation(ranks([a for a, _ in means]), ranks([b for _, b in means])),
        **{
            f"by_{group}": {key: st.fmean(some) for key, some in sorted(values.items())}
            for group, values in groups.items()
        },
    }


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


def plot(lines: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [f"learned {mean} {names[0]}" for mean, names in MEANS.items()]
    name = next((key for key in trained if key in lines), next(key for key in lines if key.startswith("learned")))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    each = lines[name]
    left.scatter([line["things"] for line in each], [st.fmean(line["layers"]) for line in each], s=8, alpha=0.4)
    left.set(xlabel="things in the scene", ylabel="tokens per layer", title="one point per question")
    skills = sorted({line["skill"] for line in each})
    right.boxplot([[st.fmean(line["layers"]) for line in each if line["skill"] == skill] for skill in skills])
    right.set_xticklabels(skills, rotation=30, ha="right")
    right.set(ylabel="tokens per layer", title="by what is asked")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
