"""docs/accuracy.md and its pictures, from docs/measured/accuracy-*.json, and what other pages say of these results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.bench.formatting import direction, interval, points
from foveate.bench.report import clearly_below
from foveate.files import write_json
from foveate.plots import BASELINE, COLOURS, figure, plain, save
from generators.folders import DOCS, MEASURED, PICTURES
from generators.markdown import bullets, fill, with_part
from generators.markdown import table as markdown_table

HEAD = """\
# What methods cost in accuracy

Accuracy of every method on the embedded model, untrained, beside the dense model and four plain baselines.

FOLLOWS
These results show how methods differ in what they keep. They come from a model of 8 million parameters on generated
scenes and do not rank methods for your model; `foveate bench --model MODEL --data FILE` does.

READING
`python docs/make.py accuracy` makes this page from committed results.
"""

SECTIONS = {
    "before": (
        "## Before the decoder",
        "Each of these acts once, after the encoder. No default was chosen on these images.",
        "tokens",
    ),
    "inside": (
        "## Inside the decoder, at equal FLOPs",
        "A budget is the FLOPs, by the cost model, of a call with that many visual tokens at the decoder's input. Each "
        "spec has the keep that meets the budget best, so a spec at a later layer keeps fewer tokens there. `pool@1` "
        "acts at the input of decoder layer 1 of 12.",
        "budget",
    ),
}

READING = """\
**How to read the tables.** Accuracy is in %, with half the width of its 95 % interval, clustered by image. Comparisons
are paired by question. **Bold** means clearly above every baseline of the same budget, ↓ clearly below at least one:
the 95 % interval of the paired difference, as it is printed, excludes zero. Many pairs are many comparisons: in each
direction, two or three of a hundred do so by chance. Square brackets show the real number of tokens where it differs
from the budget. ° marks a baseline."""
EARLIER = """\
Intervals on this page are t intervals, clustered by image, of an earlier version; `foveate bench` now computes
[others](measure.md#intervals), which differ little with so many images."""

GROUPS = {
    "clusters": ("cluster", "agglomerative", "dpc-knn"),
    "selection and merging": ("visionzip", "prumerge", "prumerge-plus", "tome"),
    "attention of the encoder": ("cls", "vispruner", "hired", "holov"),
    "diversity, pooling": ("divprune", "cdpruner", "pool"),
    "one layer, by attention": ("fastv@", "vtw@"),
    "several layers": ("pyramiddrop@", "sparsevlm", "atp@", "pool@1,6"),
    "one layer, without attention": ("dart@", "cluster@", "tome@", "pool@"),
}
STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 3, 1, 3, 1, 3)))


def pages() -> dict[str, str]:
    """Return the page."""
    guide = (DOCS / "choose-a-method.md").read_text(encoding="utf-8")
    return {"accuracy.md": page(), "choose-a-method.md": with_part(guide, "accuracy", "\n" + in_short() + "\n")}


def page() -> str:
    """Return the text of docs/accuracy.md."""
    first = _measured("before")["metrics"]["configurations"][1]
    reading = READING if "changed" in first["difference"] else f"{READING} {EARLIER}"
    parts = [HEAD.replace("FOLLOWS\n", what_follows()).replace("READING", fill(" ".join(reading.split())) + "\n")]
    for name, (title, text, count) in SECTIONS.items():
        path = MEASURED / f"accuracy-{name}.json"
        if path.exists():
            parts.append(section(json.loads(path.read_text(encoding="utf-8")), name, title, text, count))
    return "\n".join(parts)


def what_follows() -> str:
    """Return the conclusions that the results allow, as lists."""
    parts: list[str] = []
    for name, (title, _, count) in SECTIONS.items():
        path = MEASURED / f"accuracy-{name}.json"
        if not path.exists():
            continue
        dense, *rows = json.loads(path.read_text(encoding="utf-8"))["metrics"]["configurations"]
        total = dense["tokens"]["before"]
        unit = f"{{}} of {total:.0f} tokens" if count == "tokens" else f"the FLOPs of {{}} of {total:.0f} tokens"
        above = {budget: _clear_winners(rows, budget) for budget in sorted(budgets_of(rows), reverse=True)}
        without = " or ".join(f"{budget:.0f}" for budget, winners in above.items() if not winners)
        points = [f"With {unit.format(without)}, no method is clearly above every baseline."] if without else []
        for budget, labels in above.items():
            if not labels:
                continue
            methods = [row for row in rows if row["budget"] == budget and not row["baseline"]]
            best = max(methods, key=lambda row: row["accuracy"]["value"])
            named = " and ".join(f"`{label}`" for label in labels) + ","
            named = named if len(labels) < 3 else f"{len(labels)}"
            total_measured = f"of {len(methods)} methods{',' if len(labels) < 3 else ''}"
            points.append(
                f"With {unit.format(f'{budget:.0f}')}, {named} {total_measured} "
                f"{'is' if len(labels) == 1 else 'are'} clearly above every baseline. The best is `{best['label']}`: "
                f"{best['accuracy']['value']:.1%} (dense: {dense['accuracy']['value']:.1%})."
            )
        for budget in above:
            below = behind_stride(rows, budget)
            if len(below) > 1:
                methods = [row for row in rows if row["budget"] == budget and not row["baseline"]]
                points.append(
                    f"With {unit.format(f'{budget:.0f}')}, {len(below)} of {len(methods)} methods are clearly *below* "
                    f"a plain stride: {_listed(below)}."
                )
        parts.append(f"**{title.lstrip('# ')}:**\n\n{bullets(*points)}")
    return "\n".join(parts) + "\n"


def behind_stride(rows: Sequence[Mapping[str, Any]], budget: float) -> list[str]:
    """Return the methods that are clearly below a stride before the decoder, which needs no model and no arithmetic."""
    own = [row for row in rows if row["budget"] == budget]
    return [
        row["label"]
        for row in own
        if any(name.partition(":")[0] == "stride" and "@" not in name for name in clearly_below(row))
    ]


def in_short() -> str:
    """Return what the results before the decoder mean for the choice of a method, in two sentences."""
    dense, *rows = _measured("before")["metrics"]["configurations"]
    total = dense["tokens"]["before"]
    budgets = sorted(budgets_of(rows), reverse=True)
    none = [f"{budget:.0f}" for budget in budgets if not _clear_winners(rows, budget)]
    some = next(budget for budget in budgets if _clear_winners(rows, budget))
    winners = _clear_winners(rows, some)
    below = {budget: behind_stride(rows, budget) for budget in budgets}
    worst = max(budgets, key=lambda budget: len(below[budget]))
    methods = [row for row in rows if row["budget"] == worst and not row["baseline"]]
    return fill(
        f"On the embedded model, no method is clearly above every baseline with {' or '.join(none)} of {total:.0f} "
        f"tokens. With {worst:.0f}, {len(below[worst])} of {len(methods)} are clearly *worse* than a plain stride: "
        f"{_listed(below[worst])}. Differences in favour of a method begin at {some:.0f} tokens, where {len(winners)} "
        f"are clearly above every baseline ([accuracy](accuracy.md))."
    )


def readme_table() -> str:
    """Return README's table of what 64 tokens cost, with what was measured."""
    measured = _measured("readme")
    metrics = measured["metrics"]
    dense, *rows = metrics["configurations"]
    heads = ("spec", "visual tokens", "accuracy", "difference to dense (95 %)", "same answer as dense")
    cells = []
    for row in (dense, *rows):
        mark = "&nbsp;°" if row["baseline"] else ""
        difference = (
            "" if row["difference"] is None else f"{points(row['difference']['value'])} {interval(row['difference'])}"
        )
        tokens, ratio = row["tokens"]["mean_over_layers"], row["time_ratio"]
        measures = [f"{tokens:.0f}", f"{row['accuracy']['value']:.1%}", difference, f"{row['loyalty']:.0%}"]
        cells.append([f"`{row['spec']}`{mark}", *measures, f"{ratio['prefill']:.2f}", f"{ratio['total']:.2f}"])
    lost = sorted(-row["difference"]["value"] * 100 for row in rows)
    after, before = rows[0]["tokens"]["after"], dense["tokens"]["before"]
    text = fill(
        f"On the small embedded model, which we could measure thoroughly, keeping {after:.0f} of {before:.0f} tokens "
        f"costs {lost[0]:.0f} to {lost[-1]:.0f} points without any training:"
    )
    note = fill(
        "° baseline. All rows act before the decoder, so each of its layers sees these tokens; compare a step inside "
        f"it at an equal mean over layers (`--match mean`). {metrics['questions']} questions about {metrics['images']} "
        "images; differences are paired by question, intervals are clustered by image, and times are from a CPU that "
        f"did other work, too. Answering without the image scores {metrics['floor']['overall']:.1%}. Made by "
        f"`{measured['command'].partition(' --out')[0]}`."
    )
    return f"{text}\n\n{markdown_table((*heads, 'prefill / dense', 'call / dense'), cells, 'lrrrrrr')}\n{note}\n"


def _measured(name: str) -> dict[str, Any]:
    return json.loads((MEASURED / f"accuracy-{name}.json").read_text(encoding="utf-8"))


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _clear_winners(rows: Sequence[Mapping[str, Any]], budget: float) -> list[str]:
    return [row["label"] for row in rows if row["budget"] == budget and _above(row)]


def section(measured: Mapping[str, Any], name: str, title: str, text: str, count: str) -> str:
    """Return one set of results: picture, table, winners, losers."""
    metrics = measured["metrics"]
    dense, *rows = metrics["configurations"]
    environment = measured["environment"]
    packages = ", ".join(f"{package} {version}" for package, version in environment["packages"].items())
    floor = (
        "" if metrics["floor"] is None else f" Answering without the image scores {metrics['floor']['overall']:.1%}."
    )
    lines = [
        f"{title}\n",
        f"{text} {metrics['questions']} questions about {metrics['images']} images; dense has "
        f"{dense['tokens']['before']:.0f} tokens and {_accuracy(dense)} %.{floor}\n",
        f"![Accuracy against {count}](pictures/accuracy-{name}.png)\n",
        table(rows),
        *own_counts(rows),
        "### Clearly above every baseline\n",
        *_or_none(winners(rows)),
        "\n### Clearly below a baseline\n",
        *_or_none(losers(rows)),
        f"\n{sum(len(row['against']) for row in rows if not row['baseline'])} comparisons in all. Measured by\n",
        f"```text\n{measured['command']}\n```\n",
        f"on {environment['processor']}; {packages}.\n",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of methods, best on the middle budget first and baselines last."""
    budgets = sorted(budgets_of(rows), reverse=True)
    rows = [row for row in rows if row["budget"] in budgets]
    methods: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["label"], {})[row["budget"]] = row
    middle = budgets[len(budgets) // 2]

    def rank(label: str) -> tuple[bool, float]:
        row = methods[label].get(middle)
        return next(iter(methods[label].values()))["baseline"], 0.0 if row is None else -row["accuracy"]["value"]

    lines = [f"| method | {' | '.join(f'{budget:.0f}' for budget in budgets)} |", "|:--" + "|--:" * len(budgets) + "|"]
    for label in sorted(methods, key=rank):
        own = methods[label]
        mark = " °" if rank(label)[0] else ""
        cells = [_cell(own[budget]) if budget in own else "" for budget in budgets]
        lines.append(f"| `{label}`{mark} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def budgets_of(rows: Sequence[Mapping[str, Any]]) -> set[float]:
    """Return the budgets that baselines were measured at."""
    return {row["budget"] for row in rows if row["baseline"]}


def own_counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of specs without a given budget, by mean tokens over layers."""
    alone = [row for row in rows if row["budget"] not in budgets_of(rows)]
    if not alone:
        return []
    lines = [
        "These choose their own number of tokens, so no baseline has the same budget; tokens are means over layers.\n",
        "| spec | tokens | accuracy | difference to dense |",
        "|:--|--:|--:|--:|",
    ]
    for row in sorted(alone, key=lambda each: each["tokens"]["mean_over_layers"]):
        difference = row["difference"]
        told = f"{points(difference['value'])} {interval(difference)}"
        lines.append(f"| `{row['spec']}` | {row['tokens']['mean_over_layers']:.0f} | {_accuracy(row)} | {told} |")
    return ["\n".join(lines) + "\n"]


def winners(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each method that is clearly above all baselines at some budget."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if _above(row):
            least = min(row["against"].items(), key=lambda each: each[1]["value"])
            text = (
                f"at {row['budget']:.0f} (by {points(least[1]['value'])} {interval(least[1])} over {_name(least[0])})"
            )
            found.setdefault(row["label"], []).append(text)
    return [f"* `{label}`: {', '.join(texts)}" for label, texts in found.items()]


def losers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each method that is clearly below a baseline at some budget."""
    found: dict[str, list[str]] = {}
    for row in rows:
        texts = [f"{_name(name)} ({points(each['value'])})" for name, each in clearly_below(row).items()]
        if texts:
            found.setdefault(row["label"], []).append(f"at {row['budget']:.0f} below {', '.join(texts)}")
    return [f"* `{label}`: {'; '.join(texts)}" for label, texts in found.items()]


def draw() -> None:
    """Draw the picture of each section."""
    for name, (_, _, count) in SECTIONS.items():
        path = MEASURED / f"accuracy-{name}.json"
        if path.exists():
            _draw(json.loads(path.read_text(encoding="utf-8")), name, count)


def _draw(measured: Mapping[str, Any], name: str, count: str) -> None:
    """Draw one panel per group of methods; the baselines are grey in each."""
    dense, *rows = measured["metrics"]["configurations"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["label"], []).append(row)
    baselines = [label for label in lines if lines[label][0]["baseline"]]
    panels = panels_of([label for label in lines if label not in baselines])
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // columns)
    drawing = figure(4.2 * columns, 3.5 * down, layout="constrained")
    greys: list[Any] = []
    grid = drawing.subplots(down, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    budgets = sorted(budgets_of(rows))
    for axes, (title, labels) in zip(grid.flat, panels.items(), strict=False):
        axes.set_visible(True)
        axes.axhline(dense["accuracy"]["value"] * 100, color="black", linewidth=1)
        axes.annotate(
            "dense", (budgets[0], dense["accuracy"]["value"] * 100), (0, 3), textcoords="offset points", fontsize=8
        )
        greys = []
        for style, label in zip(STYLES, baselines, strict=False):
            greys += axes.plot(*_line(lines[label]), color=BASELINE, linewidth=1.1, linestyle=style, label=f"{label} °")
        drawn: list[Any] = []
        for colour, label in zip(COLOURS, labels, strict=False):
            drawn += axes.plot(*_line(lines[label]), color=colour, linewidth=1.9, marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [f"{budget:.0f}" for budget in budgets])
        axes.minorticks_off()
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        plain(axes)
        axes.grid(axis="y", alpha=0.25)
        axes.tick_params(labelbottom=True)
        axes.legend(handles=drawn, fontsize=7.5, loc="lower right", framealpha=0.9, edgecolor="none")
        axes.set_ylim(top=92)
    drawing.legend(handles=greys, loc="outside upper center", ncols=6, fontsize=8.5, frameon=False)
    what = "visual tokens kept" if count == "tokens" else "budget: FLOPs of so many visual tokens"
    drawing.supxlabel(what, fontsize=10)
    drawing.supylabel("accuracy, %", fontsize=10)
    path = PICTURES / f"accuracy-{name}.png"
    save(drawing, path)


def panels_of(labels: Sequence[str]) -> dict[str, list[str]]:
    """Return methods by group; those in no group come last, and groups of one are joined."""
    panels: dict[str, list[str]] = {}
    # The longest beginning decides: tome@1 is not tome.
    begins = sorted(((begin, group) for group in GROUPS for begin in GROUPS[group]), key=lambda each: -len(each[0]))
    for label in labels:
        group = next((group for begin, group in begins if label.startswith(begin)), "others")
        panels.setdefault(group, []).append(label)
    alone = [group for group in panels if len(panels[group]) == 1]
    if len(alone) > 1:
        panels["at @input"] = [panels.pop(group)[0] for group in GROUPS if group in alone]
    return {group: panels[group] for group in (*GROUPS, "at @input", "others") if group in panels}


def take(folder: Path, name: str) -> Path:
    """Copy what the page needs from a results folder to docs/measured."""
    command = (folder / "table.md").read_text(encoding="utf-8").rsplit("```", 2)[1].strip()
    command = "foveate bench" + command.partition(" bench")[2]
    parts = {
        each: json.loads((folder / f"{each}.json").read_text(encoding="utf-8")) for each in ("metrics", "environment")
    }
    for row in parts["metrics"]["configurations"]:
        row["skills"] = {skill: {"accuracy": own["accuracy"]["value"]} for skill, own in row["skills"].items()}
        row.pop("time_ms")
    # Of pairs, the page shows those with a baseline of the same budget, which rows hold.
    parts["metrics"].pop("pairs", None)
    path = MEASURED / f"accuracy-{name}.json"
    write_json(path, {"command": command, **parts})
    return path


def _line(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    ordered = sorted(rows, key=_place)
    return [_place(row) for row in ordered], [row["accuracy"]["value"] * 100 for row in ordered]


def _place(row: Mapping[str, Any]) -> float:
    """Return the place on the axis: the budget, or the mean over layers of a spec that chooses its own count."""
    return row["budget"] if row["against"] else row["tokens"]["mean_over_layers"]


def _cell(row: Mapping[str, Any]) -> str:
    text = _accuracy(row)
    if not row["baseline"]:
        text = f"**{text}**" if _above(row) else text
        text += " ↓" if clearly_below(row) else ""
    real = row["tokens"]["mean_over_layers"]
    return text if abs(real - row["budget"]) < 0.5 or "@" in row["label"] else f"{text} [{real:.0f}]"


def _accuracy(row: Mapping[str, Any]) -> str:
    own = row["accuracy"]
    return f"{own['value']:.1%}".rstrip("%") + f" ± {(own['high'] - own['low']) * 50:.1f}"


def _above(row: Mapping[str, Any]) -> bool:
    against = row["against"].values()
    return not row["baseline"] and bool(against) and all(direction(each) > 0 for each in against)


def _name(spec: str) -> str:
    """Return a spec without its count: `stride@1`."""
    name, _, rest = spec.partition(":")
    return f"`{name}{'@' + rest.partition('@')[2] if '@' in rest else ''}`"


def _or_none(lines: list[str]) -> list[str]:
    return lines or ["None."]
