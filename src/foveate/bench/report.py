"""Make the tables of a benchmark: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from foveate.bench.formatting import (
    count,
    direction,
    interval,
    markdown_cell,
    outward,
    points,
    printable,
    share_text,
)
from foveate.bench.metrics import difference_of
from foveate.bench.statistics import FEWEST_IMAGES
from foveate.devices import Placement

PARTS = (
    "Times of parts are milliseconds for one question about a new image: whole batches, divided by what is in them; "
    "medians over batches."
)

DIFFERENCE: Final = "Δ dense"
"""The heading of differences; that of another reference is in its place."""
HEADS: Final = (
    *("spec", "tokens", "kept", "layers", "accuracy", "± 95 %", DIFFERENCE, "95 % interval", "loyal"),
    *("encode", "compress", "prefill", "decode", "time"),
)
"""Columns of the main table; "layers" are mean tokens over layers, "time" is the total relative to dense."""
NARROW: Final = ("spec", "tokens", "kept", "accuracy", DIFFERENCE, "95 % interval", "loyal", "time")
"""Columns where there is no room for all."""
FULL: Final = 118
"""The width in characters at which the table shows all columns."""
WIDE: Final = 132
"""The width in characters at which two blanks are between its columns, rather than one."""
_NAME: Final = 13
"""Characters of a spec's name for which a table must have room; longer ones are folded, never cut."""
_UNCHANGED: Final = "unchanged"
_FEWEST: Final = 20
"""Questions of a skill from which on its interval is printed; with fewer it is nearly everything."""


def table(metrics: Mapping[str, Any], width: int = WIDE, against: str = "dense") -> Table:
    """Return the main table for a terminal of `width` characters; narrow ones get fewer columns.

    Args:
        metrics: what metrics.json holds.
        width: of the terminal.
        against: the configuration that differences are taken from.
    """
    rows = [dict(zip(HEADS, cells_of(metrics, row, against), strict=True)) for row in metrics["configurations"]]
    names = [printable(row["spec"]) + (" °" if row["baseline"] else "") for row in metrics["configurations"]]
    titles = {head: _title_of(head, against) for head in HEADS}
    heads = HEADS if width >= FULL else _narrow(metrics)
    where = placement_line(metrics)
    made = Table(
        title=Text.assemble((_title(metrics), "bold"), (f"\n{where}" if where else "", "dim")),
        title_justify="left",
        caption=Text(caption(metrics, heads, against)),
        caption_justify="left",
        title_style="",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2 if width >= WIDE else 1, 0, 0),
    )
    for head in heads:
        if head == "spec":
            made.add_column(head, min_width=min(_NAME, max(map(cell_len, names))), overflow="fold")
        else:
            made.add_column(titles[head], justify="right", no_wrap=True)
    budget = None
    for row, cells, name in zip(metrics["configurations"], rows, names, strict=True):
        if budget is not None and row["budget"] != budget:
            made.add_row()
        budget = row["budget"]
        cells["spec"] = name
        made.add_row(*(Text(cells[head], style=_style(metrics, row, head, against)) for head in heads))
    return made


def _narrow(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of a narrow table: with steps inside the decoder, tokens over layers in place of the share."""
    tokens = [row["tokens"] for row in metrics["configurations"]]
    inside = any(each["after"] != each["mean_over_layers"] for each in tokens)
    return tuple("layers" if head == "kept" and inside else head for head in NARROW)


def _title_of(head: str, against: str) -> str:
    """Return a column's heading; a reference other than dense has its name in the caption, where there is room."""
    return "Δ" if head == DIFFERENCE and against != "dense" else head


def cells_of(metrics: Mapping[str, Any], row: Mapping[str, Any], against: str = "dense") -> list[str]:
    """Return a configuration as text, one cell per column of `HEADS`."""
    accuracy, difference = row["accuracy"], _difference(metrics, row, against)
    times = row["time_ms"]
    return [
        row["spec"],
        count(row["tokens"]["after"]),
        f"{row['tokens']['share']:.1%}",
        count(row["tokens"]["mean_over_layers"]),
        f"{accuracy['value']:.1%}",
        "" if accuracy["low"] is None else f"{(accuracy['high'] - accuracy['low']) / 2:.1%}",
        "" if difference is None else points(difference["value"]),
        "" if difference is None else interval(difference) if difference["changed"] else _UNCHANGED,
        f"{row['loyalty']:.0%}",
        *(f"{times[part]:.1f}" for part in ("encoder", "compressor", "prefill", "decode")),
        "" if row["time_ratio"]["total"] is None else f"{row['time_ratio']['total']:.2f}",
    ]


def skills_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table of accuracy per skill, or None if the questions have no skills."""
    rows = metrics["configurations"]
    skills = list(rows[0]["skills"])
    if not skills:
        return None
    names = [printable(row["spec"]) for row in rows]
    made = _table_of(names, f"Accuracy per skill (± half of the 95 % interval's width, from {_FEWEST} questions on)")
    columns = []
    for skill in skills:
        made.add_column(Text(_skill_name(skill)), justify="right", no_wrap=True)
        cells = [_skill(row["skills"][skill]) for row in rows]
        floor = [] if metrics["floor"] is None else [f"{metrics['floor'][skill]:.0%}"]
        columns.append([*floor, *cells, str(rows[0]["skills"][skill]["questions"])])
    heads = [*([] if metrics["floor"] is None else ["question only"]), *names, "questions"]
    for head, cells in zip(heads, zip(*columns, strict=True), strict=True):
        style = "" if head in names else "dim"
        made.add_row(Text(head), *(Text(cell) for cell in cells), style=style)
    return made


def figures_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table of what the metric says beside the mean score, or None if it says nothing."""
    heads, rows = _figures(metrics)
    if not heads:
        return None
    names = [printable(row["spec"]) for row in metrics["configurations"]]
    made = _table_of(names, f"What {metrics['scoring']['name']} says besides")
    for head in heads:
        made.add_column(Text(head), justify="right", no_wrap=True)
    for name, cells in zip(names, rows, strict=True):
        made.add_row(Text(name), *map(Text, cells))
    return made


def _table_of(names: Sequence[str], title: str) -> Table:
    """Return a table without rows whose first column has room for the names of configurations."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    made.add_column("spec", min_width=min(_NAME, max(map(cell_len, names))), overflow="fold")
    return made


def _figures(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the names of what a metric says besides, and a row of cells for each configuration; shares as such."""
    rows = [row.get("figures") or {} for row in metrics["configurations"]]
    heads = list(rows[0])
    shares = {head: all(0 <= row[head] <= 1 for row in rows) for head in heads}
    return heads, [[f"{row[head]:.3f}" if shares[head] else f"{row[head]:.1f}" for head in heads] for row in rows]


def markdown(metrics: Mapping[str, Any], command: str = "") -> str:
    """Return the main table and the one per skill as Markdown, with the command that made them."""
    where = placement_line(metrics)
    lines = [f"**{markdown_cell(_title(metrics))}**" + (f" ({where})" if where else ""), ""]
    heads = ["spec", "visual tokens", "kept", "mean over layers", "accuracy (95 %)", "difference to dense (95 %)"]
    heads += ["loyal", "encode ms", "compress ms", "prefill ms", "decode ms", "time / dense"]
    lines += _rows(heads, [_markdown_cells(metrics, row) for row in metrics["configurations"]])
    lines += ["", markdown_cell(caption(metrics))]
    worse = losses(metrics)
    if worse:
        lines += ["", "Worse than a baseline of the same budget:", "", *(f"* {line}" for line in worse)]
    heads, cells = _figures(metrics)
    if heads:
        lines += ["", f"What {markdown_cell(metrics['scoring']['name'])} says besides:", ""]
        named = zip(metrics["configurations"], cells, strict=True)
        lines += _rows(["spec", *map(markdown_cell, heads)], [[_code(row), *own] for row, own in named])
    skills = list(metrics["configurations"][0]["skills"])
    if skills:
        lines += ["", f"Accuracy per skill (± half of the 95 % interval's width, from {_FEWEST} questions on):", ""]
        rows = [] if metrics["floor"] is None else [["question only", *(f"{metrics['floor'][s]:.0%}" for s in skills)]]
        for row in metrics["configurations"]:
            rows.append([_code(row), *(_skill(row["skills"][s]) for s in skills)])
        rows.append(["questions", *(str(metrics["configurations"][0]["skills"][s]["questions"]) for s in skills)])
        lines += _rows(["spec", *(markdown_cell(_skill_name(skill)) for skill in skills)], rows)
    if command:
        fence = "```"
        while fence in command:
            fence += "`"
        lines += ["", "Made by", "", fence, command, fence]
    return "\n".join(lines) + "\n"


def caption(metrics: Mapping[str, Any], heads: Collection[str] = HEADS, against: str = "dense") -> str:
    """Return what the columns in `heads` mean, what to know about the run, and the question-only floor."""
    sentences = []
    if any(row["baseline"] for row in metrics["configurations"]):
        sentences.append("° baseline.")
    if DIFFERENCE in heads:
        reference = "dense" if against == "dense" else printable(against)
        sentences.append(f"Differences are paired with {reference}, question by question.")
        sentences += _about_intervals(metrics, heads, against)
    if "loyal" in heads:
        sentences.append("loyal: the share of answers equal to the dense model's.")
    if "time" in heads:
        sentences.append("time: of whole calls, relative to dense.")
        timed = metrics["configurations"][0]["time_ms"]["images"]
        if timed < metrics["images"]:
            sentences.append(
                f"The run was interrupted; times are from {timed} of {metrics['images']} images, measured in one go."
            )
    if "prefill" in heads:
        sentences.append(PARTS)
    if metrics["floor"] is not None:
        sentences.append(f"Answering without the image scores {metrics['floor']['overall']:.1%}.")
    sentences += _about_answers(metrics)
    return " ".join(sentences)


def _about_answers(metrics: Mapping[str, Any]) -> list[str]:
    """Return how answers were decoded and scored, and how many were cut; [] for results that don't say it."""
    if "decoding" not in metrics:
        return []
    scoring = metrics["scoring"]
    sentences = [f"Decoding: {printable(metrics['decoding'])}.", f"Scoring: {printable(scoring['name'])} ("]
    sentences[-1] += f"{printable(scoring['title'])})."
    if metrics["prompt"] != "{question}":
        sentences.append(f'Prompt: "{printable(metrics["prompt"])}".')
    if metrics.get("system"):
        sentences.append(f'System prompt: "{printable(metrics["system"])}".')
    cut = [f"{row['spec']} {row['cut']:,}" for row in metrics["configurations"] if row["cut"]]
    if cut:
        most = metrics["longest_answer"]
        sentences.append(f"Answers cut at {most} tokens (--max-new-tokens): {printable(', '.join(cut))}.")
    return sentences


def _about_intervals(metrics: Mapping[str, Any], heads: Collection[str], against: str) -> list[str]:
    if metrics["images"] < FEWEST_IMAGES:
        return [f"{metrics['images']} image{'s are' if metrics['images'] > 1 else ' is'} too few for intervals."]
    if "95 % interval" not in heads:
        return []
    sentences = ["Intervals are 95 %, clustered by image, rounded outward."]
    differences = [_difference(metrics, row, against) for row in metrics["configurations"]]
    found = [each for each in differences if each is not None]
    if found and not any(map(direction, found)):
        reference = "dense" if against == "dense" else printable(against)
        sentences.append(f"No row differs clearly from {reference}.")
    ends = [outward(each) for each in differences if each is not None and not each["changed"]]
    if ends and ends[0] is not None:
        sentences.append(
            f"{_UNCHANGED}: each score is the same; so few images can't rule out a change of up to "
            f"±{ends[0][1]:.1f} points on others."
        )
    return sentences


def _difference(metrics: Mapping[str, Any], row: Mapping[str, Any], against: str) -> Mapping[str, Any] | None:
    return row["difference"] if against == "dense" else difference_of(metrics, row["spec"], against)


def losses(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each configuration that is clearly worse than a baseline of its budget."""
    lines = []
    for row in metrics["configurations"]:
        worse = [f"{name} ({points(each['value'])} {interval(each)})" for name, each in clearly_below(row).items()]
        if worse:
            lines.append(f"{row['spec']} is clearly below {', '.join(worse)}")
    return lines


def clearly_below(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the baselines that a configuration is clearly worse than, each with the paired difference.

    Clearly: the difference's 95 % interval, as it is printed, leaves zero out. Baselines are not held against each
    other.

    >>> against = {"pool:64": {"low": -0.2, "high": -0.1}, "random:64": {"low": -0.1, "high": 0.1}}
    >>> list(clearly_below({"baseline": False, "against": against}))
    ['pool:64']
    """
    if row["baseline"]:
        return {}
    return {name: each for name, each in row.get("against", {}).items() if direction(each) < 0}


def placement_line(metrics: Mapping[str, Any]) -> str:
    """Return where the model ran, in which dtype and in which batches; "" for results that don't say it.

    >>> placement_line({"device": "cuda:0", "card": "NVIDIA L4", "dtype": "bfloat16", "quantize": None, "batch": 8})
    'bfloat16 on cuda:0 (NVIDIA L4), batch 8'
    """
    if "device" not in metrics:
        return ""
    placement = Placement(*(metrics[name] for name in ("device", "card", "dtype", "quantize")))
    return placement.title + ("" if metrics["batch"] is None else f", batch {metrics['batch']}")


def _title(metrics: Mapping[str, Any]) -> str:
    clips = metrics.get("clips", 0)
    counts = {"image": metrics["images"] - clips, "clip": clips}
    shown = " and ".join(f"{count:,} {noun}{'s' * (count != 1)}" for noun, count in counts.items() if count)
    return f"{printable(metrics['task'])}: {metrics['questions']:,} questions about {shown}"


def _markdown_cells(metrics: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    cells = cells_of(metrics, row)
    return [_code(row), *cells[1:4], share_text(row["accuracy"]), f"{cells[6]} {cells[7]}".strip(), *cells[8:]]


def _code(row: Mapping[str, Any]) -> str:
    """Return a spec as code; a bar in it would end the cell even there."""
    return f"`{printable(row['spec']).replace('|', chr(92) + '|')}`{' °' if row['baseline'] else ''}"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|:--" + "|--:" * (len(heads) - 1) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def _skill_name(skill: str) -> str:
    return printable(skill.replace("_", " "))


def _skill(skill: Mapping[str, Any]) -> str:
    accuracy = skill["accuracy"]
    if accuracy["low"] is None or skill["questions"] < _FEWEST:
        return f"{accuracy['value']:.0%}"
    return f"{accuracy['value']:.0%} ±{(accuracy['high'] - accuracy['low']) / 2 * 100:2.0f}"


def _style(metrics: Mapping[str, Any], row: Mapping[str, Any], head: str, against: str) -> str:
    """Return green or red if the interval excludes zero."""
    difference = _difference(metrics, row, against)
    if head not in {DIFFERENCE, "95 % interval"} or difference is None:
        return "bold" if row["spec"] == against else ""
    return {-1: "red", 0: "", 1: "green"}[direction(difference)]
