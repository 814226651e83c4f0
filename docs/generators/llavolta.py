"""docs/llavolta.md, from docs/measured/llavolta.json and llavolta-clips.json, and the cost model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from foveate.bench.formatting import points_text, share_text
from foveate.bench.statistics import Interval, difference_interval
from foveate.costmodel import read_model
from foveate.train.estimate import ConversationSize, measure
from foveate.train.objectives import parse_recipe
from foveate.train.recipe import Recipe
from foveate.train.settings import DENSE
from foveate.train.timetable import PUBLISHED, published
from generators.folders import MEASURED
from generators.markdown import machine, packages

PAPER: dict[str, tuple[float, float, float]] = {
    "single": (15.3, 61.8, 68.5),
    "two-compression": (12.8, 61.5, 68.5),
    "three-deeper": (12.8, 61.8, 68.5),
    "three-wider": (12.8, 61.3, 68.5),
    "four-wider-deeper": (12.9, 61.8, 68.5),
    "four-deeper-wider": (12.8, 61.9, 68.5),
    "last-stage-compression": (12.4, 62.1, 52.2),
}
"""Hours of training, mean of 13 benchmarks, milliseconds to the first token: the paper's Table 2."""

SHORT, LONG = "llavolta.json", "llavolta-long.json"
"""The runs that all schedules have, and longer ones of some."""
TEXTS = (64, 256, 512)
CLIP_FRAMES = (8, 32, 64)
CLIP_TEXT, CLIP_SIZE, CLIP_MODEL = 64, (640, 360), "qwen2.5-vl-7b"

HEAD = """\
# LLaVolta: training under compression that relaxes

[LLaVolta](https://arxiv.org/abs/2406.20092) (Visual Context Compressor, NeurIPS 2024) trains a model while its visual
tokens are averaged inside the decoder, heavily at first and lightly or not at all at the end. This page compares the
paper's claims with our measurements on the embedded model. [training.md](training.md) shows how to train so yourself.
"""

CLIPS_SAY = (
    "So short a run of so small a model shows that the schedules train on clips, and not which is better: believe no "
    "difference that its interval doesn't show."
)
CLIPS_MISSING = (
    "Whether the models hold after training on clips is not measured yet. `python benchmarks/llavolta_clips.py` trains "
    "the decoder of the embedded model for clips under `single`, `two-compression` and `last-stage-compression`, and "
    "asks about other clips."
)

COMMANDS = """\
## How to measure it again

```text
timeout 590 python benchmarks/llavolta.py --report docs/measured/llavolta.json     # repeat until all is done
python benchmarks/llavolta.py --steps 600 --out runs/llavolta-long --report docs/measured/llavolta-long.json
python benchmarks/llavolta_clips.py
python docs/make.py llavolta
```
"""

CLAIM = """\
## What the paper claims

LLaVA-1.5-7B, fine-tuned on 665 thousand conversations by eight GPUs. "Pooled" is the average of neighbours in raster
order from a decoder layer on; [training.md](training.md) lists the schedules' stages.

| schedule | hours of training | mean of 13 benchmarks | first token, ms |
|:--|--:|--:|--:|
"""

CLAIM_AFTER = """
* `last-stage-compression`, the only one that is used compressed, has the best mean and trains in 19 % less time.
* The last stage must be the setting that the model is tested in. Trained under compression to the last step and then
  tested with all tokens, GQA falls from 62.6 to 55.9 and MMBench from 65.3 to 47.4 (Table 9).
* Averaging is worse than clustering before any training with it (53.0 against 54.0 at the same number of tokens), and
  better after (60.4 against 57.9; Table 3).
"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"llavolta.md": page()}


def page() -> str:
    """Return the text of docs/llavolta.md."""
    results = schedules(SHORT)
    rows = [f"| `{n}` | {hours:.1f} | {mean:.1f} | {ms:.1f} |" for n, (hours, mean, ms) in PAPER.items()]
    parts = [
        HEAD,
        _conclusions(results),
        CLAIM + "\n".join(rows) + "\n" + CLAIM_AFTER,
        _setting(results),
        _table(results),
        _keeps_its_place(results),
        _collapse(results),
        _pool_or_cluster(results),
        _longer(results),
        _time(results),
        _seven_billion(),
        _clips(),
        _differ(results),
        _missing(results),
        COMMANDS,
    ]
    return "\n".join(parts)


class Results:
    """What was measured, and means of it over seeds."""

    def __init__(self, measured: dict[str, Any]) -> None:
        self.measured = measured
        self.runs: dict[str, dict[str, Any]] = {each["name"]: each for each in measured["runs"]}
        self.images = [n for n, count in enumerate(measured["questions_per_image"]) for _ in range(count)]
        self.missing = [name for name in measured["planned"] if name not in self.runs]

    def seeds(self, schedule: str) -> list[int]:
        """The seeds that a schedule was trained with so far."""
        return sorted(each["seed"] for each in self.runs.values() if each.get("schedule") == schedule)

    def right(self, schedule: str, spec: str, seeds: Sequence[int] | None = None) -> list[float]:
        """Per question, the share of seeds whose model is right under a spec; "start" has none."""
        seeds = self.seeds(schedule) if seeds is None else seeds
        names = ["start"] if schedule == "start" else [f"{schedule}-{seed}" for seed in seeds]
        answers = [next(test["right"] for test in self.runs[name]["tests"] if test["spec"] == spec) for name in names]
        return [fmean(map(int, digits)) for digits in zip(*answers, strict=True)]

    def accuracy(self, schedule: str, spec: str, seeds: Sequence[int] | None = None) -> float:
        """The share of right answers, over all seeds or some."""
        return fmean(self.right(schedule, spec, seeds))

    def asked(self, schedule: str, spec: str, seed: int) -> bool:
        """Whether a run's model was tested under a spec."""
        return any(test["spec"] == spec for test in self.runs[f"{schedule}-{seed}"]["tests"])

    def has(self, *schedules: str) -> bool:
        """Whether all of these were trained at least once."""
        return all(self.seeds(each) for each in schedules)

    def difference(self, one: tuple[str, str], other: tuple[str, str]) -> Interval:
        """(schedule, spec) less another, question by question, over the seeds that both have."""
        seeds = None
        if "start" not in (one[0], other[0]):
            seeds = sorted(set(self.seeds(one[0])) & set(self.seeds(other[0])))
            seeds = [n for n in seeds if self.asked(*one, n) and self.asked(*other, n)]
        return difference_interval(self.right(*one, seeds), self.right(*other, seeds), self.images)

    def spec(self, schedule: str) -> str:
        """What a schedule ends with."""
        return next(each for each in self.runs.values() if each.get("schedule") == schedule)["stages"][-1][0]

    def step(self, spec: str) -> float:
        """The time of a step under a spec, as a share of a dense one."""
        seconds = self.measured["steps"]["seconds"]
        return seconds[spec] / seconds[DENSE]

    def time(self, schedule: str) -> float:
        """The time of a schedule's forward and backward passes, as a share of a dense run's."""
        stages = next(each for each in self.runs.values() if each.get("schedule") == schedule)["stages"]
        return sum(self.step(spec) * steps for spec, steps in stages) / sum(steps for _, steps in stages)

    def flops(self, schedule: str) -> float:
        """The FLOPs of a schedule as a share of a dense run's."""
        one = next(each for each in self.runs.values() if each.get("schedule") == schedule)
        return one["flops"] / one["dense_flops"]


def points(found: Interval) -> str:
    """Return a difference with its interval, in percentage points."""
    assert found.low is not None
    assert found.high is not None
    return points_text({"value": found.value, "low": found.low, "high": found.high})


def verdict(found: Interval, more: str, less: str, open_: str) -> str:
    """One of three sentences: the interval is above zero, below it, or has it inside.

    >>> verdict(Interval(0.1, -0.1, 0.3), "more", "less", "no measurable difference")
    'no measurable difference'
    """
    assert found.low is not None
    assert found.high is not None
    return more if found.low > 0 else less if found.high < 0 else open_


def _wrap(text: str) -> str:
    return (
        "\n\n".join(
            textwrap.fill(each, 120, break_long_words=False, break_on_hyphens=False) for each in text.split("\n\n")
        )
        + "\n"
    )


def _conclusions(short: Results) -> str:
    """Return what follows from the measurements, for somebody who chooses a schedule; of the longest runs of each."""
    title = "## What follows\n\n"
    name = "last-stage-compression"
    if not short.has("single", name, "always-pool", "always-cluster"):
        return title + "Too little is measured yet.\n"
    light, heavy, cluster = (short.spec(each) for each in (name, "always-pool", "always-cluster"))
    used, steps = _of_longest((name, light), ("single", DENSE))
    other, collapsed = _of_longest(("always-pool", DENSE), ("single", DENSE))
    ending = [each for each in PUBLISHED if each not in ("single", name) and short.has(each)]
    differences = [_of_longest((each, DENSE), ("single", DENSE))[0] for each in ending]
    open_ = all(
        found.low is not None and found.high is not None and found.low <= 0 <= found.high for found in differences
    )
    points_listed = [100 * found.value for found in differences]
    times = [100 * (1 - short.time(each)) for each in ending]
    parts = [
        f"To save training time and inference time, use `{name}`: it takes {short.time(name):.0%} of the time of a "
        f"dense run, and its model, used under `{light}`, is {points(used)} from the dense one after {steps} steps: "
        + verdict(used, "better.", "worse.", "no measurable difference."),
        f"To save training time alone, use any schedule that ends dense: they save {min(times):.0f} to "
        f"{max(times):.0f} % of the time, and their models are {min(points_listed):+.1f} to {max(points_listed):+.1f} "
        "points from the dense one"
        + (
            ", none by a measurable difference." if open_ else "; the text below says which differences are measurable."
        ),
        f"A model that never meets all tokens loses the use of them: trained under `{heavy}` to the last of "
        f"{collapsed} steps and used dense, it is {points(other)} from the dense one. End with the setting that you "
        "will use.",
        _heavy(short, heavy, cluster),
    ]
    return (
        title
        + "\n".join(
            textwrap.fill(
                part, 120, initial_indent="* ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            for part in parts
        )
        + "\n"
    )


def _heavy(results: Results, heavy: str, cluster: str) -> str:
    """Return what to train with under heavy compression, by the longest runs that there are."""
    differences = {
        each.measured["setting"]["steps"]: each.difference(("always-pool", heavy), ("always-cluster", cluster))
        for each in (results, longer())
        if each is not None and each.has("always-pool", "always-cluster")
    }
    told = ", and ".join(f"{points(each)} after {steps} steps" for steps, each in differences.items())
    return (
        "For heavy compression, train with "
        + verdict(differences[max(differences)], "averages", "clusters", "averages or clusters")
        + f", by the longest runs that there are: at the same number of tokens, averaging less clustering is {told}."
    )


def longer() -> Results | None:
    """Return the longer runs, if there are any."""
    return schedules(LONG) if (MEASURED / LONG).exists() else None


@cache
def schedules(file: str) -> Results:
    """Return the runs of a file of docs/measured."""
    return Results(json.loads((MEASURED / file).read_text(encoding="utf-8")))


def longest(*tested: tuple[str, str]) -> str:
    """Return the file with the longest runs of some schedules that were tested under these specs with one seed."""
    found = longer()
    if found is not None:
        seeds = set.intersection(*({*found.seeds(schedule)} for schedule, _ in tested))
        if any(all(found.asked(*each, seed) for each in tested) for seed in seeds):
            return LONG
    return SHORT


def _of_longest(one: tuple[str, str], other: tuple[str, str]) -> tuple[Interval, int]:
    """Return (schedule, spec) less another in the longest runs of both, and the steps of these."""
    chosen = schedules(longest(one, other))
    return chosen.difference(one, other), chosen.measured["setting"]["steps"]


def _setting(results: Results) -> str:
    measured, setting = results.measured, results.measured["setting"]
    loss = next((each["loss"] for each in results.runs.values() if each.get("schedule") == "single"), [[0, 0.0]])
    where = measured["environment"]
    start = results.accuracy("start", DENSE)
    text = (
        "The start is the embedded model, moved to 144 visual tokens per image: groups of four of its 576 tokens are "
        "averaged before the projector. It was not trained for that, and answers "
        f"{start:.1%} of the questions so. Every run begins there and makes "
        f"{setting['steps']} steps of {setting['batch']} conversations of up to eight questions; "
        "decoder and projector are trained (AdamW, learning rate "
        f"{setting['lr']:g} with a cosine, {setting['precision']}), and the encoder is frozen. A seed decides the "
        "order of the conversations. In the first run without compression the loss falls from "
        f"{loss[0][1]:.2f} (the first {loss[0][0]} steps) to {loss[-1][1]:.2f}."
        "\n\n"
        f"Each trained model answers the first {measured['questions']} questions of the fixed test set, about "
        f"{len(measured['questions_per_image'])} images: without compression (that is: with its 144 tokens), under the "
        "setting that `last-stage-compression` ends with, and some under the heavy ones. Intervals are 95 %, paired "
        "question by question and clustered by image; they cover other questions, not "
        f"other seeds. Measured on {machine(where)}, " + packages(where) + "."
    )
    return "## What we measured\n\n" + _wrap(text)


def _table(results: Results) -> str:
    tests = [test["spec"] for test in results.runs["start"]["tests"]]
    head = [
        "schedule",
        "ends with",
        "seeds",
        "FLOPs",
        "time",
        *[f"`{each}`" if each != DENSE else "dense" for each in tests],
    ]
    lines = [f"| {' | '.join(head)} |", "|:--|:--|--:|--:|--:" + "|--:" * len(tests) + "|"]
    cells = ["the start", "", "", "", "", *(f"{results.accuracy('start', each):.1%}" for each in tests)]
    lines.append(f"| {' | '.join(cells)} |")
    for schedule in [*PUBLISHED, "always-pool", "always-cluster"]:
        if not results.has(schedule):
            continue
        end = results.spec(schedule)
        cells = [f"`{schedule}`", f"`{end}`" if end != DENSE else DENSE, str(len(results.seeds(schedule)))]
        cells += [f"{results.flops(schedule):.0%}", f"{results.time(schedule):.0%}"]
        for each in tests:
            # The heavy setting is asked of some models only, and of the first seed.
            asked = [seed for seed in results.seeds(schedule) if results.asked(schedule, each, seed)]
            value = f"{results.accuracy(schedule, each, asked):.1%}" if asked else ""
            cells.append(f"**{value}**" if each == end else value)
        lines.append(f"| {' | '.join(cells)} |")
    every = [
        f"`{schedule}` " + " / ".join(f"{results.accuracy(schedule, results.spec(schedule), [n]):.1%}" for n in seeds)
        for schedule in [*PUBLISHED, "always-pool"]
        if len(seeds := results.seeds(schedule)) > 1
    ]
    text = (
        "FLOPs are the cost model's, forward and backward, as a share of the dense run's. Time is that of a step's "
        "forward and backward pass, measured under each spec in turns, the processor's own time, summed over a "
        "schedule's steps. Bold is the setting that a schedule ends with, and `always-pool` and `always-cluster` "
        "have one stage: the heavy setting from the first step to the last. The measured file also has the wall time "
        "of each run; the machine was shared, so it says little and isn't shown."
    )
    if every:
        text += "\n\nSeed by seed, each under its own last setting: " + "; ".join(every) + "."
    return "\n".join(lines) + "\n\n" + _wrap(text)


def _keeps_its_place(results: Results) -> str:
    title = "## Does last-stage compression keep its place?\n\n"
    name = "last-stage-compression"
    if not results.has("single", name):
        return title + "Not measured yet.\n"
    light = results.spec(name)
    whole = results.difference((name, light), ("single", DENSE))
    free = results.difference((name, light), ("single", light))
    text = (
        f"Used as it was trained, under `{light}`, it is {points(whole)} from the dense run used densely: "
        + verdict(
            whole,
            "it is better, as in the paper.",
            "it is worse, and the paper's claim does not hold here.",
            "no measurable difference. In the paper it is 0.3 points better.",
        )
        + f" Against the dense run put under the same `{light}` without having been trained for it, it is "
        f"{points(free)}: "
        + verdict(
            free,
            "training under the setting pays.",
            "training under the setting costs accuracy even there: its first two stages see only a sixteenth of the "
            "tokens, and these few steps don't recover that.",
            "training for the setting has no measurable effect here; averaging that deep in the decoder "
            "hardly hurts a model that was not trained for it.",
        )
    )
    others = [each for each in PUBLISHED if each not in ("single", name) and results.has(each)]
    if others:
        text += "\n\nThe schedules that end dense, beside the dense run, all used densely: " + "; ".join(
            f"`{each}` {points(results.difference((each, DENSE), ('single', DENSE)))}" for each in others
        )
        text += "."
    return title + _wrap(text)


def _collapse(results: Results) -> str:
    title = "## Does training that never meets the test setting collapse?\n\n"
    if not results.has("single", "last-stage-compression"):
        return title + "Not measured yet.\n"
    mild = results.difference(("last-stage-compression", DENSE), ("single", DENSE))
    text = (
        "`last-stage-compression` never sees all tokens after the middle of the decoder. Tested with all of them, it "
        f"is {points(mild)} from the dense run: " + verdict(mild, "better.", "a loss.", "no measurable collapse.")
    )
    if results.has("always-pool"):
        heavy = results.spec("always-pool")
        hard = results.difference(("always-pool", DENSE), ("single", DENSE))
        own = results.difference(("always-pool", DENSE), ("always-pool", heavy))
        begin = results.difference(("always-pool", DENSE), ("start", DENSE))
        text += (
            f"\n\nTrained under `{heavy}` from the first step to the last, and tested dense, the model is "
            f"{points(hard)} from the dense run, "
            + verdict(hard, "better.", "a collapse as published.", "no measurable difference.")
            + f" That is {points(own)} beside the same model under `{heavy}`, and {points(begin)} beside the start: "
            + verdict(
                begin,
                "what it learnt under averages still helps with all tokens, but far less than training with them.",
                "training under compression alone made it worse with all tokens than no training at all.",
                "that training neither helped nor hurt dense use measurably.",
            )
            + " The trainer warns of a recipe that ends in another setting than its `test`."
        )
    return title + _wrap(text)


def _pool_or_cluster(results: Results) -> str:
    title = "## Is averaging better than clustering once trained, and worse before?\n\n"
    tests = [test["spec"] for test in results.runs["start"]["tests"]]
    pool, cluster = tests[2], tests[3]
    before = results.difference(("start", pool), ("start", cluster))
    text = (
        f"At the same number of tokens from the same layer on (`{pool}` and `{cluster}`), before any training, "
        f"averaging is {points(before)} from clustering ({results.accuracy('start', pool):.1%} against "
        f"{results.accuracy('start', cluster):.1%}): "
        + verdict(before, "better, unlike in the paper.", "worse, as published.", "no measurable difference.")
    )
    if results.has("single"):
        dense = results.difference(("single", pool), ("single", cluster)) if 1 in results.seeds("single") else None
        if dense is not None:
            text += f" In the dense run, which has seen neither, it is {points(dense)}."
    if results.has("always-pool", "always-cluster"):
        after = results.difference(("always-pool", pool), ("always-cluster", cluster))
        text += (
            f"\n\nEach trained under its own setting from the first step to the last, averaging is {points(after)} "
            f"from clustering ({results.accuracy('always-pool', pool):.1%} against "
            f"{results.accuracy('always-cluster', cluster):.1%}): "
            + verdict(
                after,
                "better, as published.",
                "still worse, unlike in the paper, where it overtakes by 2.5 points.",
                "no measurable difference; in the paper averaging overtakes by 2.5 points.",
            )
        )
        gain = {
            "averaging": results.accuracy("always-pool", pool) - results.accuracy("start", pool),
            "clustering": results.accuracy("always-cluster", cluster) - results.accuracy("start", cluster),
        }
        text += (
            " Training gave " + " and ".join(f"{each} {100 * value:.0f} points" for each, value in gain.items()) + "."
        )
    else:
        text += "\n\nAfter training: not measured yet."
    return title + _wrap(text)


def _longer(short: Results) -> str:
    """Return the section about longer runs, if there are any."""
    title = "## Ten times as long\n\n"
    long = longer()
    if long is None:
        return title + "Not measured yet.\n"
    steps = long.measured["setting"]["steps"]
    lines = [
        f"| schedule | used under | seeds | {short.measured['setting']['steps']} steps | {steps} steps "
        "| less `single`, dense |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    names = [each for each in [*PUBLISHED, "always-pool", "always-cluster"] if long.has(each)]
    for schedule in names:
        end = long.spec(schedule)
        cells = [f"`{schedule}`", f"`{end}`" if end != DENSE else DENSE, str(len(long.seeds(schedule)))]
        cells += [f"{each.accuracy(schedule, end):.1%}" if each.has(schedule) else "" for each in (short, long)]
        alone = schedule == "single" or not long.has("single")
        cells.append("" if alone else points(long.difference((schedule, end), ("single", DENSE))))
        lines.append(f"| {' | '.join(cells)} |")
    text = (
        f"The same runs with {steps} steps each, and everything else as above. A difference is between runs of the "
        "same seeds; accuracies are means over all seeds of a row."
    )
    every = [
        f"`{each}` " + " / ".join(f"{long.accuracy(each, long.spec(each), [seed]):.1%}" for seed in long.seeds(each))
        for each in names
        if len(long.seeds(each)) > 1
    ]
    if every:
        text += "\n\nSeed by seed: " + "; ".join(every) + "."
    if long.has("always-pool", "single"):
        found = long.difference(("always-pool", DENSE), ("single", DENSE))
        text += (
            f"\n\nTrained under `{long.spec('always-pool')}` alone and used dense, the model is {points(found)} from "
            "the dense run: "
            + verdict(found, "better.", "the collapse stays when training is longer.", "no measurable difference.")
        )
    if long.has("always-pool", "always-cluster"):
        pool, cluster = (long.spec(each) for each in ("always-pool", "always-cluster"))
        found = long.difference(("always-pool", pool), ("always-cluster", cluster))
        text += f"\n\nAveraging is {points(found)} from clustering at the same number of tokens: " + verdict(
            found,
            "better once trained, as in the paper.",
            "worse, also once trained, unlike in the paper.",
            "no measurable difference; in the paper it is 2.5 points better.",
        )
    return title + "\n".join(lines) + "\n\n" + _wrap(text)


def _time(results: Results) -> str:
    title = "## How much training time is saved?\n\n"
    steps = results.measured["steps"]
    lines = ["| spec | step beside dense |", "|:--|--:|"]
    lines += [f"| `{spec}` | {results.step(spec):.0%} |" for spec in steps["seconds"]]
    names = [each for each in PUBLISHED if each != "single" and results.has(each)]
    text = (
        f"A forward and backward pass over {steps['conversations']} conversations, "
        f"{steps['clock']}, medians of turns. The times leave out the encoder, which runs once for all, and the "
        "optimiser. What does not shrink (text, logits, norms, layers before the averaging) makes time fall less "
        "than FLOPs do"
        + (
            ": "
            + "; ".join(
                f"`{each}` saves {1 - results.flops(each):.0%} of the FLOPs and {1 - results.time(each):.0%} of the "
                "time"
                for each in names
            )
            if names
            else ""
        )
        + "."
    )
    return title + "\n".join(lines) + "\n\n" + _wrap(text)


def _seven_billion() -> str:
    lines = ["| schedule | " + " | ".join(f"{text} text tokens" for text in TEXTS) + " | hours saved in the paper |"]
    lines.append("|:--" + "|--:" * (len(TEXTS) + 1) + "|")
    for name in PUBLISHED[1:]:
        saved = [1 - seven_billion(name, text) / seven_billion("single", text) for text in TEXTS]
        hours = 1 - PAPER[name][0] / PAPER["single"][0]
        lines.append(f"| `{name}` | " + " | ".join(f"{each:.0%}" for each in saved) + f" | {hours:.0%} |")
    text = (
        "Saved FLOPs of one conversation with one picture, forward and backward, decoder and projector trained, from "
        "`foveate.cost` for LLaVA-1.5-7B. The paper does not say how long its conversations are, and its hours include "
        "what no schedule shrinks: the encoder, the optimiser, traffic between GPUs with sharded weights. So its hours "
        "fall less than FLOPs would let them."
    )
    return "## What the cost model says for 7 B\n\n" + "\n".join(lines) + "\n\n" + _wrap(text)


def seven_billion(schedule: str, text: int) -> float:
    """FLOPs of a conversation of LLaVA-1.5-7B, averaged over a published schedule's stages."""
    return flops("llava-1.5-7b", schedule, ConversationSize(text, 576, ((336, 336),)))


def flops(model: str, schedule: str, one: ConversationSize) -> float:
    """FLOPs of a conversation, averaged over a published schedule's stages."""
    config = read_model(model)
    recipe: Recipe = parse_recipe({"stages": schedule, "data": {"scenes": 1}, "steps": 1})
    stages = published(schedule, len(config.decoder.layers))
    return fmean(measure(config, recipe, stage.spec, one)[1] for stage in stages)


def _clips() -> str:
    """Return the section about clips: what the cost model says, and a short training run if there is one."""
    lines = [
        "| schedule | " + " | ".join(f"{frames} frames" for frames in CLIP_FRAMES) + " | hours saved in the paper |"
    ]
    lines.append("|:--" + "|--:" * (len(CLIP_FRAMES) + 1) + "|")
    sizes = [ConversationSize(CLIP_TEXT, 0, clips=((frames, *CLIP_SIZE),)) for frames in CLIP_FRAMES]
    for name in PUBLISHED[1:]:
        saved = [1 - flops(CLIP_MODEL, name, one) / flops(CLIP_MODEL, "single", one) for one in sizes]
        hours = 1 - PAPER[name][0] / PAPER["single"][0]
        lines.append(f"| `{name}` | " + " | ".join(f"{each:.0%}" for each in saved) + f" | {hours:.0%} |")
    counted = (
        f"Saved FLOPs of one conversation with one clip of {CLIP_SIZE[0]} x {CLIP_SIZE[1]} pixels and {CLIP_TEXT} text "
        "tokens, forward and backward, from `foveate.cost` for Qwen2.5-VL-7B, its encoder frozen and counted. A clip "
        "has more visual tokens than a picture, and more of the work is the encoder's, which no schedule shrinks."
    )
    head = "## On clips\n\n" + "\n".join(lines) + "\n\n" + _wrap(counted)
    file = MEASURED / "llavolta-clips.json"
    if not file.exists():
        return head + "\n" + _wrap(CLIPS_MISSING)
    measured = json.loads(file.read_text(encoding="utf-8"))
    setting, rows = measured["setting"], measured["rows"]
    answered = [
        "| schedule | FLOPs of the decoder | under | accuracy | less `single`, dense | loss, first and last steps |"
    ]
    answered.append("|:--|--:|:--|--:|--:|--:|")
    for row in rows:
        first, last = (fmean(row[key]) if row[key] else None for key in ("first_losses", "last_losses"))
        for number, (spec, found) in enumerate(row["tests"].items()):
            begin = (
                ["", "", ""]
                if number
                else [
                    "the start" if row["schedule"] == "start" else f"`{row['schedule']}`",
                    f"{row['flops']:.0%}" if "flops" in row else "",
                    "" if first is None else f"{first:.2f}, {last:.2f}",
                ]
            )
            base = row["schedule"] == "single" and spec == "dense"
            difference = "" if base else points_text(found["over_single"], unit="")
            cells = [*begin[:2], f"`{spec}`" if spec != "dense" else spec, share_text(found["accuracy"]), difference]
            answered.append("| " + " | ".join([*cells, begin[2]]) + " |")
    about = (
        f"A short run: the embedded model for clips, moved to {measured['tokens']} tokens per clip of "
        f"{setting['frames']} frames (16 per frame in place of 36, which it was not trained for), its decoder trained "
        f"for {setting['steps']} steps of {setting['batch']} questions about {5 * setting['clips']} clips, and asked "
        f"{measured['questions']} questions about {5 * setting['test_clips']} others. Each schedule once, with one "
        "seed; intervals cover other questions alone."
    )
    return head + "\n" + _wrap(about) + "\n" + "\n".join(answered) + "\n\n" + _wrap(CLIPS_SAY)


def _differ(results: Results) -> str:
    setting = results.measured["setting"]
    return "## Why the two differ\n\n" + _wrap(
        "Ours is a decoder of 12 layers and 5 million weights that already knows the questions and learns to see with "
        "a quarter of its tokens; the paper's is one of 32 layers and 7 billion that has been trained on images once "
        f"before. Our runs are {setting['steps']} steps, the paper's 5,197, so a stage that doesn't train for the test "
        "setting costs more here. Our 144 tokens are averages already, and the layers "
        "are scaled: layer 2 of 32 is our layer 1, with one layer before it. Questions about generated scenes ask "
        "for single small things. An average of eight neighbours takes in two thirds of a row of our 12 x 12 tokens, "
        "and a third of a row of the paper's 24 x 24."
    )


def _missing(short: Results) -> str:
    planned = {each.measured["setting"]["steps"]: each.missing for each in (short, longer()) if each is not None}
    texts = [
        f"With {steps} steps, planned and not run: " + ", ".join(f"`{name}`" for name in names) + "."
        for steps, names in planned.items()
        if names
    ]
    texts.append(
        "The command below runs what is missing, and skips what is done." if texts else "Every planned run is in."
    )
    texts.append(
        "Differences that rest on one seed are for that order of the conversations. The set-up with all 576 tokens and "
        "the encoder in every step (`--full`) is for a GPU and has not been run."
    )
    return "## What is missing\n\n" + _wrap(" ".join(texts))
