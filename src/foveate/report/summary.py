"""Say in a few sentences what a benchmark found: what is kept, what it saves, and who loses to a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.bench.formatting import count, direction, points_text, share_text
from foveate.bench.front import front
from foveate.bench.report import losses, placement_line
from foveate.bench.statistics import FEWEST_IMAGES
from foveate.report.measured import Measured

__all__ = ["pareto", "sentences"]

Row = Mapping[str, Any]


def sentences(run: Measured) -> list[str]:
    """Return the findings of a run, each a sentence of plain text.

    First comes what was `said` of the run, then what was asked, the best configuration of each budget, the cheapest one
    that isn't clearly worse than the dense model, and those that are clearly worse than a baseline.
    """
    metrics, rows = run.metrics, run.rows
    dense, others = rows[0], rows[1:]
    asked = f"{metrics['questions']:,} questions about {metrics['images']:,} images"
    where = placement_line(metrics)
    found = [
        *run.said,
        f"The dense model answers {share_text(dense['accuracy'])} of {asked} right, with "
        f"{count(dense['tokens']['before'])} visual tokens per image{', in ' + where if where else ''}.",
    ]
    if metrics["floor"] is not None:
        found.append(f"Answering without the image scores {metrics['floor']['overall']:.1%}.")
    for budget in sorted({row["budget"] for row in others}, reverse=True):
        of_budget = [row for row in others if row["budget"] == budget]
        same = _comparable(of_budget)
        best = max(same, key=lambda row: row["accuracy"]["value"])
        role = ", a baseline," if best["baseline"] else ""
        beside = f" of {len(same)} configurations" if len(same) > 1 else ""
        found.append(
            f"With {count(best['tokens']['after'])} tokens, {best['spec']}{role} is best{beside}: {_difference(best)}, "
            f"in {best['time_ratio']['total']:.2f} of the time of a whole call."
        )
        found += [
            f"{row['spec']} is left out there: its layers have {count(row['tokens']['mean_over_layers'])} tokens on "
            "average."
            for row in of_budget
            if row not in same
        ]
    if metrics["images"] >= FEWEST_IMAGES and others:
        found.append(_cheapest(others))
    found += [f"{line}." for line in losses(metrics)]
    return found


def _comparable(rows: list[Row]) -> list[Row]:
    """Return the configurations whose layers have about as many tokens on average as those of the one with the fewest.

    A step inside the decoder leaves the layers before it all tokens, so what it leaves at the end says too little.
    """
    fewest = min(row["tokens"]["mean_over_layers"] for row in rows)
    return [row for row in rows if row["tokens"]["mean_over_layers"] <= 1.1 * fewest]


def pareto(rows: list[Row]) -> list[Row]:
    """Return the configurations that no other one beats in both time and accuracy, the fastest first.

    >>> def row(spec, time, accuracy):
    ...     return {"spec": spec, "time_ratio": {"total": time}, "accuracy": {"value": accuracy}}
    >>> [each["spec"] for each in pareto([row("a", 1.0, 0.9), row("b", 0.5, 0.8), row("c", 0.6, 0.7)])]
    ['b', 'a']
    """
    by_name = {row["spec"]: row for row in rows}
    times = {name: (row["time_ratio"]["total"], row["accuracy"]["value"]) for name, row in by_name.items()}
    return [by_name[name] for name in front(times)]


def _difference(row: Row) -> str:
    difference = row["difference"]
    sign = direction(difference)
    clearly = "no clear difference" if sign == 0 else "clearly below dense" if sign < 0 else "clearly above dense"
    return f"{points_text(difference)}, {clearly}" if difference["low"] is not None else points_text(difference)


def _cheapest(rows: list[Row]) -> str:
    good = [row for row in rows if direction(row["difference"]) >= 0 and row["time_ratio"]["total"] < 1]
    if not good:
        return "Every configuration that is faster than the dense model is clearly worse, too."
    best = min(good, key=lambda row: row["time_ratio"]["total"])
    low = best["difference"]["low"]
    return (
        f"The fastest configuration that isn't clearly worse than the dense model is {best['spec']}, in "
        f"{best['time_ratio']['total']:.2f} of its time; these questions leave room for a loss of up to "
        f"{max(0.0, -low * 100):.1f} points."
    )
