"""The measured parts of docs/atp.md, from two files in docs/measured; the rest of that page is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.bench.formatting import percent_text
from foveate.plots import BASELINE, COLOURS, figure, plain, save
from generators.benchmarks import benchmark
from generators.folders import DOCS, MEASURED, PICTURES
from generators.markdown import fill, table, with_measured_part, with_part

TITLES = {
    "144-tokens": "**learned**, `mean={mean}`",
    "86-tokens": "**learned**, `mean={mean}`, layers 1, 2, 6",
    "halved": "**learned** for 144, after half of the tokens are dropped: `stride:0.5+atp:mean={mean}`",
    "144-tokens-lora": "**learned along with the model**, `mean={mean}`",
    "86-tokens-lora": "**learned along with the model**, `mean={mean}`, layers 1, 2, 6",
    "halved-lora": "learned along with the model for 144, after half of the tokens are dropped",
    "start": "the start of training: the same thresholds for all images",
    "open": "learned from a start with the sparsest grid open (`grid: 4`)",
    "no-spatial": "learned without spatial score",
    "no-cross": "learned without attention from text",
    "no-self": "learned without logits from the image",
    "values": "learned with masks on values",
    "soft": "learned without hard masks at the end",
    "blind": "learned without the question's hidden state",
}
"""What the page calls adapters."""
READINGS = {
    "received": "as we read it: logits received, attention from text, both stretched",
    "given": "logits given",
    "softmax": "softmax of the logits, nothing stretched",
    "self": "logits alone",
    "cross": "attention from text alone",
    "grid": "the sparsest grid first (36), then as we read it",
}
"""What the page calls readings of the paper's scores."""
JOINT = "learned 144 144-tokens-lora"
"""The configuration that was learned along with the model."""
COMPARED = {
    "learned 144 144-tokens": "learned",
    JOINT: "learned along with the model",
    "learned 86 86-tokens": "learned for 86",
}
"""Configurations that are compared with others."""
COLUMNS = ["accuracy", "to dense", "tokens", "GFLOPs", "count", "other skills"]


def pages() -> dict[str, str]:
    """Return the page."""
    text = with_measured_part((DOCS / "atp.md").read_text(encoding="utf-8"), measured_part(_measured()))
    file = MEASURED / "atp-budgets.json"
    if file.exists():
        text = with_part(text, "budgets", "\n" + budgets_part(json.loads(file.read_text(encoding="utf-8"))))
    return {"atp.md": text}


def draw() -> None:
    """Draw the picture of budgets."""
    draw_budgets(_measured()["needs"]["learned 144 144-tokens"], PICTURES / "atp.png")


def _measured() -> dict[str, Any]:
    return json.loads((MEASURED / "atp.json").read_text(encoding="utf-8"))


def measured_part(found: Mapping[str, Any]) -> str:
    """Return the tables of a result of benchmarks/atp.py; what wasn't measured is left out."""
    about = benchmark("atp_configurations")
    rows = found["configurations"]
    dense = rows["dense"]
    parts = [
        fill(
            f"{found['questions']} questions about {found['scenes']} scenes of the test set, after the first "
            f"{found['skipped_scenes']} scenes. The dense model has {dense['accuracy']['value']:.1%} and "
            f"{dense['prefill_gflops']:.2f} GFLOPs. Differences are paired, with 95 % intervals by scene."
        )
        + "\n"
    ]
    for mean in about.MEANS:
        parts += [_at_mean(about, rows, mean), *_differences(about, rows, mean)]
    parts += _variants(about, rows)
    parts += _grids(found.get("choice", {}))
    readings = {title: f"point {name}" for name, title in READINGS.items()}
    parts.append(_table("58 tokens from layer 2 on, by score", rows, readings))
    parts += [_needs(name, found["needs"][name]) for name in COMPARED if name in found["needs"]]
    parts.append(
        "![Tokens per scene against the things in it, and tokens by question](pictures/atp.png)\n\n"
        "![Tokens that stay of three scenes, from the emptiest to the fullest](pictures/atp-kept.png)\n\n"
        + fill(
            "The emptiest of these scenes, one in the middle and the fullest, and what stays of each from the layers "
            "of the thresholds on (`python benchmarks/atp.py draw`)."
        )
        + "\n"
    )
    return "\n".join(parts)


def budgets_part(found: Mapping[str, Any]) -> str:
    """Return the tables of a result of benchmarks/atp_budgets.py: four budgets, learned and fixed."""
    dense = found["dense"]
    parts = [
        fill(
            f"{found['questions']} questions about {found['scenes']} scenes of the test set, after the first "
            f"{found['skipped_scenes']} scenes; two seeds of thresholds, averaged question by question. The dense "
            f"model has {dense['accuracy']['value']:.1%} and {dense['prefill_gflops']:.2f} GFLOPs. The last column is "
            "what learned thresholds have more than the row, paired, with a 95 % interval by scene."
        )
        + "\n"
    ]
    for budget in sorted(found["budgets"], key=lambda budget: -budget["mean"]):
        learned, mean = budget["learned"], budget["mean"]
        seeds = learned["seeds"]
        shares = " and ".join(f"{seed['accuracy']['value']:.1%}" for seed in seeds)
        cells = [
            [
                f"**learned**, two seeds ({shares})",
                f"{learned['accuracy']['value']:.1%}",
                percent_text(learned["to_dense"]),
                f"{fmean(seed['mean_tokens'] for seed in seeds):.0f}",
                f"{fmean(seed['prefill_gflops'] for seed in seeds):.2f}",
                "",
            ]
        ]
        for row in budget["rows"]:
            name = row["what"].rpartition(" ")[2]
            cells.append(
                [
                    TITLES.get(name, f"`{row['what']}`"),
                    f"{row['accuracy']['value']:.1%}",
                    "",
                    f"{row['mean_tokens']:.0f}",
                    f"{row['prefill_gflops']:.2f}",
                    percent_text(row["learned_less_it"]),
                ]
            )
        entering = budget["entering"]
        fewer = f"{mean} tokens per layer, {1 - mean / 576:.0%} fewer"
        if entering < 576:
            fewer += f", {entering} entering the decoder"
        columns = [fewer, "accuracy", "to dense", "tokens", "GFLOPs", "learned less it"]
        parts.append(table(columns, cells, "l" + "r" * (len(columns) - 1)))
        need, spread = learned["needs"], learned["needs"]["tokens"]
        parts.append(
            fill(
                f"Learned, first seed: from {spread['least']:.0f} to {spread['most']:.0f} tokens per layer, standard "
                f"deviation {spread['spread']:.0f}; rank correlation with the number of things in the scene "
                f"{need['rank_correlation_with_things']:.2f}."
            )
            + "\n"
        )
        parts += _by_skill(budget["rows"])
    return "\n".join(parts)


def _by_skill(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the table of differences by skill to adapters that were trained otherwise, if there are any."""
    columns = {
        TITLES[name]: row["learned_less_it_by_skill"]
        for row in rows
        if (name := row["what"].rpartition(" ")[2]) in TITLES
    }
    if not columns:
        return
    skills = sorted(next(iter(columns.values())))
    cells = [[skill.replace("_", " "), *(percent_text(own[skill]) for own in columns.values())] for skill in skills]
    yield table(["learned less it, by skill", *columns], cells, "l" + "r" * len(columns))


def _at_mean(about: Any, rows: Mapping[str, Any], mean: int) -> str:
    """Return the table of all configurations with one mean of tokens per layer."""
    shown = {f"`{spec}`": about.file_stem(spec) for spec in about.FIXED[mean]}
    names = [name for name in about.MEANS[mean] if name not in about.VARIANTS]
    shown |= {TITLES[name].format(mean=mean): f"learned {mean} {name}" for name in names}
    if mean == 144:
        shown |= {f"the same adapter, `mean={other}`": f"learned {other} 144-tokens" for other in about.OTHER_MEANS}
        shown |= {f"LoRA trained under `{about.CONTROL}`": "fixed-lora", "the same model, dense": "fixed-lora dense"}
    return _table(f"at {mean} tokens per layer", rows, shown)


def _table(title: str, rows: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    """Return a table of the rows that were measured.

    Args:
        title: of the first column.
        rows: by name.
        shown: their names by what the table calls them.
    """
    cells = [[text, *_cells(rows[name])] for text, name in shown.items() if name in rows]
    return table([title, *COLUMNS], cells, "l" + "r" * len(COLUMNS))


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = []
    for counting in (True, False):
        skills = [own for skill, own in row["skills"].items() if (skill == "count") == counting]
        questions = sum(skill["questions"] for skill in skills)
        right = sum(skill["accuracy"] * skill["questions"] for skill in skills)
        shares.append(f"{right / questions:.1%}" if questions else "")
    accuracy, tokens, flops = row["accuracy"]["value"], row["mean_tokens"], row["prefill_gflops"]
    return [f"{accuracy:.1%}", percent_text(row["to_dense"]), f"{tokens:.0f}", f"{flops:.2f}", *shares]


def _differences(about: Any, rows: Mapping[str, Any], mean: int) -> Iterable[str]:
    """Yield the table of paired differences between learned configurations and others at the same mean."""
    columns = {
        title: rows[name]["to_rivals"]
        for name, title in COMPARED.items()
        if name.startswith(f"learned {mean} ") and "to_rivals" in rows.get(name, {})
    }
    shown = {f"`{spec}`": about.file_stem(spec) for spec in about.FIXED[mean]}
    shown |= {"LoRA under the fixed rule": "fixed-lora", "thresholds alone": "learned 144 144-tokens"}
    cells: list[list[str]] = []
    for text, name in shown.items():
        compared = {title: own for title, own in columns.items() if name in own and _compares(title, name)}
        if compared:
            differences = (percent_text(own[name]) if title in compared else "" for title, own in columns.items())
            cells.append([text, *differences])
    if cells:
        yield table(["difference to", *columns], cells, "l" + "r" * len(columns))


def _compares(title: str, rival: str) -> bool:
    """Return whether the page compares a learned configuration with this one: models trained along among themselves."""
    return title == COMPARED[JOINT] or rival not in ("fixed-lora", "learned 144 144-tokens")


def _variants(about: Any, rows: Mapping[str, Any]) -> Iterable[str]:
    """Yield the table of adapters that were trained otherwise."""
    differences = rows.get("learned 144 144-tokens", {}).get("to_rivals", {})
    names = {name: f"learned 144 {name}" for name in about.VARIANTS if f"learned 144 {name}" in differences}
    cells = [[TITLES[name], percent_text(differences[row]), *_cells(rows[row])] for name, row in names.items()]
    if cells:
        yield table(["trained otherwise, at 144", "ours minus it", *COLUMNS], cells, "l" + "r" * (len(COLUMNS) + 1))


def _grids(choice: Mapping[str, Any]) -> Iterable[str]:
    """Yield paragraphs about a start with an open grid and one with a closed grid."""
    if "open_minus_closed" not in choice:
        return
    opened, closed = (choice["accuracy"][f"learned 144 {name}"] for name in ("open", "144-tokens"))
    yield (
        fill(
            f"On {choice['questions']} questions about {choice['scenes']} other scenes, a start with the grid open has "
            f"{opened:.1%} and one with the grid closed {closed:.1%}, difference "
            f"{percent_text(choice['open_minus_closed'])}."
        )
        + "\n"
    )
    for name, begun in (("open", "started open"), ("144-tokens", "started closed")):
        layers = [
            f"at layer {layer['layer']} for {layer['open']:.0%} of the questions, {layer['tokens']:.0f} tokens"
            for layer in choice["by_place"][name]
        ]
        yield fill(f"Tokens that stay by their place alone, {begun}: {'; '.join(layers)}.") + "\n"


def _needs(name: str, need: Mapping[str, Any]) -> str:
    """Return the paragraph about how budgets follow images and questions."""
    _, mean, key = name.split()
    tokens = need["tokens"]
    return (
        fill(
            f"Tokens per layer, {TITLES[key].format(mean=mean)}: from {tokens['least']:.0f} to {tokens['most']:.0f}, "
            f"standard deviation {tokens['spread']:.0f}. Rank correlation with the number of things in the scene: "
            f"{need['rank_correlation_with_things']:.2f}. By kind of question: {_ordered(need['by_skill'])}. "
            f"By kind of scene: {_ordered(need['by_kind'])}."
        )
        + "\n"
    )


def _ordered(counts: Mapping[str, Any]) -> str:
    """Return means by name, the largest first."""
    descending = sorted(counts.items(), key=lambda pair: -pair[1]["value"])
    return ", ".join(f"{name} {count['value']:.0f}" for name, count in descending)


def draw_budgets(need: Mapping[str, Any], path: Path) -> None:
    """Draw two panels: tokens of each scene against the things in it, and tokens by kind of question.

    Args:
        need: what benchmarks/atp.py says about the budgets of one adapter.
        path: of the picture.
    """
    picture = figure(10, 4.2, layout="constrained")
    scenes, questions = picture.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_scenes(scenes, need)
    _draw_questions(questions, need)
    for axes, direction in ((scenes, "y"), (questions, "x")):
        plain(axes)
        axes.grid(axis=direction, alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(picture, path)


def _draw_scenes(axes: Any, need: Mapping[str, Any]) -> None:
    kinds = sorted({kind for _, kind, *_ in need["scenes"]})
    for colour, kind in zip(COLOURS, kinds, strict=False):
        scenes = [scene for scene in need["scenes"] if scene[1] == kind]
        things, _, means, least, most = zip(*scenes, strict=True)
        axes.vlines(things, least, most, color=colour, linewidth=1.2, alpha=0.35)
        axes.plot(things, means, "o", color=colour, markersize=5.5, label=kind)
    title = f"by what is there: rank correlation {need['rank_correlation_with_things']:.2f}"
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("things in the scene (a point per scene, a line over its questions)")
    axes.set_ylabel("tokens kept per layer, of 576")
    axes.legend(fontsize=8, ncols=2, framealpha=0.9, edgecolor="none", title="kind of scene", title_fontsize=8)


def _draw_questions(axes: Any, need: Mapping[str, Any]) -> None:
    skills = sorted(need["by_skill"].items(), key=lambda pair: pair[1]["value"])
    for row, (_, tokens) in enumerate(skills):
        low, high = (tokens["value"] if tokens[end] is None else tokens[end] for end in ("low", "high"))
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=2.2, alpha=0.4, solid_capstyle="round")
        axes.plot([tokens["value"]], [row], "o", color=COLOURS[0], markersize=6)
        text = f"{tokens['value']:.0f}"
        axes.annotate(text, (tokens["value"], row), (0, 6), textcoords="offset points", fontsize=8, ha="center")
    mean = need["tokens"]["mean"]
    axes.axvline(mean, color=BASELINE, linewidth=1, linestyle="--", zorder=0)
    axes.annotate(f"mean {mean:.0f}", (mean, -0.75), (4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_yticks(range(len(skills)), [name.replace("_", " ") for name, _ in skills])
    axes.set_ylim(-1, len(skills) - 0.4)
    axes.set_title("by what is asked, with 95 % intervals", loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("tokens kept per layer, of 576")
