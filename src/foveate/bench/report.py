"""Make the tables of a benchmark: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from foveate.bench.formatting import count, interval, points, share_text
from foveate.devices import Placement

NOTE = (
    "Differences are paired with dense, question by question; intervals are 95 %, clustered by image. "
    "loyal: the share of answers equal to the dense model's. time: of whole calls, relative to dense."
)
PARTS = (
    "Times of parts are milliseconds for one question about a new image: whole batches, divided by what is in them; "
    "medians over batches."
)


HEADS: Final = (
    *("spec", "tokens", "kept", "layers", "accuracy", "± 95 %", "Δ dense", "95 % interval", "loyal"),
    *("encode", "compress", "prefill", "decode", "time"),
)
"""Columns of the main table; "layers" are mean tokens over layers, "time" is the total relative to dense."""
NARROW: Final = ("spec", "tokens", "kept", "accuracy", "Δ dense", "95 % interval", "loyal", "time")
FULL: Final = 118
"""The width in characters at which the table shows all columns."""
WIDE: Final = 132
"""The width in characters at which two blanks are between its columns, rather than one."""


def table(metrics: Mapping[str, Any], width: int = WIDE) -> Table:
    """Return the main table for a terminal of `width` characters; narrow ones get fewer columns."""
    heads = HEADS if width >= FULL else NARROW
    where = placement_line(metrics)
    made = Table(
        title=Text.assemble((_title(metrics), "bold"), (f"\n{where}" if where else "", "dim")),
        title_justify="left",
        caption=caption(metrics, parts=heads is HEADS),
        caption_justify="left",
        title_style="",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2 if width >= WIDE else 1, 0, 0),
    )
    for head in heads:
        if head == "spec":
            made.add_column(head, min_width=13, overflow="fold")
        else:
            made.add_column(head, justify="right", no_wrap=True)
    budget = None
    for row in metrics["configurations"]:
        if budget is not None and row["budget"] != budget:
            made.add_row()
        budget = row["budget"]
        cells = dict(zip(HEADS, cells_of(row), strict=True))
        cells["spec"] += " °" if row["baseline"] else ""
        made.add_row(*(Text(cells[head], style=_style(row, head)) for head in heads))
    return made


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return a configuration as text, one cell per column of `HEADS`."""
    accuracy, difference = row["accuracy"], row["difference"]
    times = row["time_ms"]
    return [
        row["spec"],
        count(row["tokens"]["after"]),
        f"{row['tokens']['share']:.1%}",
        count(row["tokens"]["mean_over_layers"]),
        f"{accuracy['value']:.1%}",
        "" if accuracy["low"] is None else f"{(accuracy['high'] - accuracy['low']) / 2:.1%}",
        "" if difference is None else points(difference["value"]),
        "" if difference is None or difference["low"] is None else interval(difference),
        f"{row['loyalty']:.0%}",
        *(f"{times[part]:.1f}" for part in ("encoder", "compressor", "prefill", "decode")),
        f"{row['time_ratio']['total']:.2f}",
    ]


def skills_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table of accuracy per skill, or None if the questions have no skills."""
    rows = metrics["configurations"]
    skills = list(rows[0]["skills"])
    if not skills:
        return None
    made = Table(
        title="Accuracy per skill (half of the 95 % interval's width)",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    made.add_column("spec")
    for skill in skills:
        made.add_column(skill.replace("_", " "), justify="right", no_wrap=True)
    if metrics["floor"] is not None:
        made.add_row("question only", *(f"{metrics['floor'][skill]:.0%}      " for skill in skills), style="dim")
    for row in rows:
        made.add_row(row["spec"], *(_skill(row["skills"][skill]["accuracy"]) for skill in skills))
    made.add_row("questions", *(f"{rows[0]['skills'][skill]['questions']}      " for skill in skills), style="dim")
    return made


def markdown(metrics: Mapping[str, Any], command: str = "") -> str:
    """Return the main table and the one per skill as Markdown, with the command that made them."""
    where = placement_line(metrics)
    lines = [f"**{_title(metrics)}**" + (f" ({where})" if where else ""), ""]
    heads = ["spec", "visual tokens", "kept", "mean over layers", "accuracy (95 %)", "difference to dense (95 %)"]
    heads += ["loyal", "encode ms", "compress ms", "prefill ms", "decode ms", "time / dense"]
    lines += _rows(heads, [_markdown_cells(row) for row in metrics["configurations"]])
    lines += ["", caption(metrics)]
    worse = losses(metrics)
    if worse:
        lines += ["", "Worse than a baseline of the same budget:", "", *(f"* {line}" for line in worse)]
    skills = list(metrics["configurations"][0]["skills"])
    if skills:
        lines += ["", "Accuracy per skill:", ""]
        rows = [] if metrics["floor"] is None else [["question only", *(f"{metrics['floor'][s]:.0%}" for s in skills)]]
        for row in metrics["configurations"]:
            rows.append([_code(row), *(_skill(row["skills"][s]["accuracy"]) for s in skills)])
        rows.append(["questions", *(str(metrics["configurations"][0]["skills"][s]["questions"]) for s in skills)])
        lines += _rows(["spec", *(skill.replace("_", " ") for skill in skills)], rows)
    if command:
        lines += ["", "Made by", "", "```", command, "```"]
    return "\n".join(lines) + "\n"


def caption(metrics: Mapping[str, Any], parts: bool = True) -> str:
    """Return what the columns mean, those of the parts of a call if they are shown, and the question-only floor."""
    sentences = []
    if any(row["baseline"] for row in metrics["configurations"]):
        sentences.append("° baseline.")
    sentences.append(NOTE)
    if parts:
        sentences.append(PARTS)
    timed = metrics["configurations"][0]["time_ms"]["images"]
    if timed < metrics["images"]:
        sentences.append(
            f"The run was interrupted; times are from {timed} of {metrics['images']} images, measured in one go."
        )
    if metrics["floor"] is not None:
        sentences.append(f"Answering without the image scores {metrics['floor']['overall']:.1%}.")
    return " ".join(sentences)


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

    Clearly: the difference's 95 % interval leaves zero out. Baselines are not held against each other.

    >>> against = {"pool:64": {"low": -0.2, "high": -0.1}, "random:64": {"low": -0.1, "high": 0.1}}
    >>> list(clearly_below({"baseline": False, "against": against}))
    ['pool:64']
    """
    if row["baseline"]:
        return {}
    # A single image has no interval.
    against = row.get("against", {})
    return {name: each for name, each in against.items() if each["high"] is not None and each["high"] < 0}


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
    questions, images = metrics["questions"], metrics["images"]
    return f"{metrics['task']}: {questions:,} questions about {images:,} image{'s' if images != 1 else ''}"


def _markdown_cells(row: Mapping[str, Any]) -> list[str]:
    cells = cells_of(row)
    accuracy = row["accuracy"]
    measured = cells[4] if accuracy["low"] is None else share_text(accuracy)
    return [_code(row), *cells[1:4], measured, f"{cells[6]} {cells[7]}".strip(), *cells[8:]]


def _code(row: Mapping[str, Any]) -> str:
    return f"`{row['spec']}`{' °' if row['baseline'] else ''}"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|:--" + "|--:" * (len(heads) - 1) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def _skill(accuracy: Mapping[str, Any]) -> str:
    if accuracy["low"] is None:
        return f"{accuracy['value']:.0%}"
    return f"{accuracy['value']:.0%} ±{(accuracy['high'] - accuracy['low']) / 2 * 100:2.0f}"


def _style(row: Mapping[str, Any], head: str) -> str:
    """Return green or red if the interval excludes zero."""
    difference = row["difference"]
    if head not in {"Δ dense", "95 % interval"} or difference is None or difference["low"] is None:
        return "bold" if row["spec"] == "dense" else ""
    return "red" if difference["high"] < 0 else "green" if difference["low"] > 0 else ""
