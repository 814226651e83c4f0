"""Make the tables of a comparison for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from foveate.bench.comparing.equal import COSTS
from foveate.bench.formatting import direction, interval, points, printable, share_text

__all__ = ["caption", "equal_table", "hard_table", "main_table", "skills_table"]

_NAMES: Final = {"holm": "p (Holm)", "bh": "p (BH)"}


def main_table(found: Mapping[str, Any]) -> Table:
    """Return the differences of all configurations to the reference, with their tests."""
    title = f"{printable(found['task'])}: {found['questions']:,} questions about {found['images']:,} images"
    corrected = [_NAMES[found["correct"]]] if found["correct"] else []
    heads = ["spec", "accuracy", "Δ", "95 %", "bootstrap", "p", *corrected, "better", "worse", "needed", "rank"]
    rows = []
    for row in found["rows"]:
        difference, rank = row["difference"], found["ranks"][row["spec"]]
        cells = [
            printable(row["spec"]),
            f"{row['accuracy']['value']:.1%}",
            points(difference["value"]),
            _interval(difference),
            _interval(row["bootstrap"]),
            probability(row["probability"]),
            *([probability(row["corrected"])] if corrected else []),
            str(row["changes"]["better"]),
            str(row["changes"]["worse"]),
            "" if row["needed"] is None else f"{row['needed']:,}",
            f"{rank['low']:.0f}-{rank['high']:.0f}",
        ]
        rows.append((cells, {-1: "red", 0: "", 1: "green"}[direction(difference)]))
    return _table(f"{title}, against {printable(found['against'])}", heads, rows)


def skills_table(found: Mapping[str, Any]) -> Table:
    """Return McNemar's test of each skill: answers that became better and worse, and its probability."""
    skills = list(next(iter(found["skills"].values())))
    rows = [
        (
            [
                printable(name),
                *(f"+{c['better']} -{c['worse']} p {probability(c['probability'])}" for c in own.values()),
            ],
            "",
        )
        for name, own in found["skills"].items()
    ]
    return _table("McNemar's test per skill", ["spec", *(printable(skill) for skill in skills)], rows)


def equal_table(found: Mapping[str, Any]) -> Table:
    """Return each configuration against each other method at the same cost."""
    what = found["equal"]["cost"]
    rows = []
    for row in found["equal"]["rows"]:
        small, large = printable(row["small"]), printable(row["large"])
        mixed = large if row["share"] == 1 or small == large else f"{row['share']:.0%} {large}, rest {small}"
        cells = [printable(row["spec"]), printable(row["rival"]), mixed, points(row["value"]), _interval(row)]
        rows.append((cells, {-1: "red", 0: "", 1: "green"}[direction(row)]))
    return _table(f"At equal {COSTS[what]}", ["spec", "rival", "the rival at that cost", "Δ", "95 %"], rows)


def hard_table(found: Mapping[str, Any]) -> Table:
    """Return accuracy on what down-sampling fails, and on what it doesn't."""
    counts = found["hard"]["questions"]
    rows = [
        ([printable(name), share_text(own["hard"]), share_text(own["easy"])], "")
        for name, own in found["hard"]["rows"].items()
    ]
    heads = ["spec", f"hard ({counts['hard']:,} questions)", f"easy ({counts['easy']:,})"]
    return _table(
        f"What {printable(found['hard']['by'])} fails and dense doesn't, and what it doesn't fail", heads, rows
    )


def caption(found: Mapping[str, Any]) -> str:
    """Return what the columns mean."""
    plural = "s" if found["points"] != 1 else ""
    told = [
        "95 %: clustered by image. bootstrap: 95 % of 9,999 draws of the images. p: permutation test, images exchanged "
        "as a whole. better, worse: questions with a higher and a lower score.",
        f"needed: questions that show a difference of {found['points']:g} point{plural} with a power of 80 %.",
        "rank: in 95 % of 2,000 draws of the images, among all configurations.",
    ]
    if not found["correct"] and len(found["rows"]) > 1:
        told.append(f"{len(found['rows'])} comparisons aren't corrected; --correct holm does.")
    if found.get("agreement") is not None:
        told.append(f"The runs order their configurations alike to a Kendall's tau of {found['agreement']:.2f}.")
    if "equal" in found and not found["equal"]["rows"]:
        told.append("No other method was measured around the cost of a row; bench several methods at several budgets.")
    elif "equal" in found:
        told.append("At equal cost, a rival that wasn't measured there is the mixture of its two budgets around it.")
    return " ".join(told)


def probability(value: float) -> str:
    """Return a probability as text.

    >>> probability(0.00001), probability(0.034), probability(0.5)
    ('<0.001', '0.034', '0.50')
    """
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _interval(found: Mapping[str, Any]) -> str:
    return "" if found["low"] is None else interval(found)


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> Table:
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for head in heads:
        left = head in ("spec", "rival", "the rival at that cost")
        made.add_column(head, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for cells, style in rows:
        made.add_row(*(Text(cell, style=style) for cell in cells))
    return made
