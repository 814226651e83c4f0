"""Make the tables of a search: its rounds, and what was measured on held-out questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from foveate.bench.formatting import count, interval, markdown_cell, points, printable
from foveate.tune.verdict import sentences

__all__ = ["HEADS", "ROUND_HEADS", "caption", "cells", "markdown", "round_cells"]

HEADS: Final = (
    *("", "spec", "tokens", "layers", "accuracy", "Δ dense", "95 %", "bound"),
    *("predicted ms", "measured ms", "time / dense"),
)
"""Columns of the held-out table; the first marks the front."""
ROUND_HEADS: Final = ("round", "images", "questions", "specs", "stay", "best so far", "Δ dense", "95 %", "chance")


def cells(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the held-out table as text, the slowest first."""
    found = []
    for row in sorted(result["rows"], key=lambda row: -row["time_ratio"]):
        difference, tokens, seconds = row["difference"], row["tokens"], row["seconds"]
        chosen = row["spec"] == result["chosen"]["spec"]
        found.append(
            (
                " ".join(mark for mark, holds in (("*", row["front"]), ("chosen", chosen)) if holds),
                printable(row["spec"]) + (" °" if row["baseline"] else ""),
                count(tokens["after"]),
                count(tokens["mean_over_layers"]),
                f"{row['accuracy']['value']:.1%}",
                "" if difference is None else points(difference["value"]),
                "" if difference is None else interval(difference),
                "" if difference is None else row["judgement"],
                f"{seconds['predicted'] * 1e3:.2f}",
                f"{seconds['measured'] * 1e3:.2f}",
                f"{row['time_ratio']:.2f}",
            )
        )
    return found


def round_cells(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of rounds as text."""
    found = []
    for each in result["rounds"]:
        best = each["candidates"][0]
        found.append(
            (
                str(each["round"]),
                f"{each['images']:,}",
                f"{each['questions']:,}",
                str(len(each["candidates"])),
                str(sum(row["stays"] for row in each["candidates"])),
                printable(best["spec"]),
                points(best["difference"]["value"]),
                interval(best["difference"]),
                f"{best['chance']:.2f}",
            )
        )
    return found


def caption(result: Mapping[str, Any]) -> str:
    """Return what the columns of the held-out table mean."""
    decides = (
        f"Measured times decide: {result['where']}, all rows side by side. Predicted ones are for "
        f"{result['device']['title']}."
        if result["measured"]
        else f"Predicted times decide, for {result['device']['title']}"
        + ("" if result["device"]["measured"] else " (a lower bound from peak rates)")
        + f"; nothing was measured there. Measured ones are of this machine: {result['where']}."
    )
    bound = points(result["max_drop"]).lstrip("+")
    return (
        "*: on the front, nothing is both as fast and as accurate. chosen: by the search. °: baseline. bound: "
        f"whether the 95 % interval is within a drop of {bound} points, beyond it, or unclear. {decides} Milliseconds "
        f"are for one question about a new image, with an answer of {result['answer']} tokens (predicted) or as it was "
        "(measured)."
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Return both tables and what they say as Markdown."""
    lines = [f"**{markdown_cell(result['task'])}: the cheapest spec that is good enough**", ""]
    lines += [f"* {line}" for line in sentences(result)]
    lines += ["", *_table(ROUND_HEADS, round_cells(result), {0, 5}), ""]
    lines += [*_table(HEADS, cells(result), {0, 1, 7}), "", caption(result), ""]
    if result["command"]:
        lines += [f"Made by `{result['command']}`.", ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    ruler = [":--" if number in left else "--:" for number in range(len(heads))]
    return [f"| {' | '.join(map(markdown_cell, row))} |" for row in (heads, ruler, *rows)]
