"""A results folder of `foveate bench` as data for a page: its points, and the answers that went wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.bench.finished import is_finished, read_finished
from foveate.bench.front import front
from foveate.bench.report import caption
from foveate.bench.results import Prediction
from foveate.errors import FoveateError
from foveate.files import files_in, is_folder, shown_path

__all__ = ["Failure", "Point", "Results", "failures", "found_results", "read_results"]


@dataclass(frozen=True)
class Point:
    """One configuration.

    Attributes:
        spec: its name.
        line: the method that it belongs to.
        baseline: whether that is a baseline.
        tokens: visual tokens per image, mean over layers.
        accuracy: a share from 0 to 1.
        low: the lower end of its 95 % interval; None for none.
        high: the upper end.
        loyalty: share of answers equal to the dense model's.
        time: of whole calls relative to dense; None if unknown.
        best: whether no configuration with as few tokens is more accurate.
    """

    spec: str
    line: str
    baseline: bool
    tokens: float
    accuracy: float
    low: float | None
    high: float | None
    loyalty: float
    time: float | None
    best: bool = False


@dataclass(frozen=True)
class Results:
    """A finished results folder.

    Attributes:
        name: of the folder.
        title: of the task.
        points: all configurations, dense first.
        floor: accuracy without the image; None if unknown.
        notes: what to know about the figures.
        predictions: all answers.
    """

    name: str
    title: str
    points: tuple[Point, ...]
    floor: float | None
    notes: str
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Failure:
    """A wrong answer.

    Attributes:
        image: its name.
        source: of the generated picture that it is; "" for a file.
        question: its text.
        answer: the right one.
        dense: the dense model's.
        dense_right: whether that is right.
        given: the answer under the spec.
        skill: what the question tests; "" if unknown.
    """

    image: str
    source: str
    question: str
    answer: str
    dense: str
    dense_right: bool
    given: str
    skill: str


def found_results(path: str | Path) -> dict[str, Path]:
    """Return the finished results at a path by their names: of the folder itself, or of those in it.

    Raises:
        FoveateError: there are none.
    """
    path = Path(path)
    if not is_folder(path):
        raise FoveateError(f"there is no folder {shown_path(path)}; foveate bench --out {shown_path(path)} makes one")
    inside = [path, *(each for each in files_in(path) if is_folder(each))]
    found = {each.name: each for each in inside if is_finished(each)}
    if not found:
        raise FoveateError(
            f"{shown_path(path)} holds no finished results; foveate bench --out {shown_path(path)} makes some"
        )
    return found


def read_results(path: Path) -> Results:
    """Read a finished results folder.

    Raises:
        FoveateError: it isn't there, isn't finished, or is damaged.
    """
    run = read_finished(path)
    metrics = run.metrics
    points = tuple(_point(row) for row in metrics["configurations"])
    floor = metrics["floor"]
    return Results(
        path.name,
        f"{metrics['task']}: {metrics['questions']:,} questions about {metrics['images']:,} images",
        tuple(_with_best(points)),
        None if floor is None else float(floor["overall"]),
        caption(metrics, ("Δ dense", "loyal", "95 % interval")),
        run.predictions,
    )


def _point(row: Mapping[str, Any]) -> Point:
    accuracy = row["accuracy"]
    return Point(
        spec=row["spec"],
        line=row["label"],
        baseline=bool(row["baseline"]),
        tokens=float(row["tokens"]["mean_over_layers"]),
        accuracy=float(accuracy["value"]),
        low=accuracy["low"],
        high=accuracy["high"],
        loyalty=float(row["loyalty"]),
        time=row["time_ratio"]["total"],
    )


def _with_best(points: Sequence[Point]) -> list[Point]:
    """Mark the configurations that none beats in accuracy with as few tokens."""
    best = front({point.spec: (point.tokens, point.accuracy) for point in points})
    return [replace(point, best=point.spec in best) for point in points]


def failures(results: Results, spec: str, most: int = 60) -> tuple[tuple[Failure, ...], int]:
    """Return wrong answers of a configuration, first those that dense gets right, and how many there are.

    Raises:
        FoveateError: there is no such configuration.
    """
    if spec not in {point.spec for point in results.points}:
        raise FoveateError(f"{results.name} has no configuration {spec!r}")
    dense = {each.number: each for each in results.predictions if each.spec == "dense"}
    wrong = [each for each in results.predictions if each.spec == spec and not each.right]
    wrong.sort(key=lambda each: (not dense[each.number].right, each.number))
    made = tuple(
        Failure(
            image=each.image,
            source=_source(each.image),
            question=each.question,
            answer=each.answer,
            dense=dense[each.number].prediction,
            dense_right=dense[each.number].right,
            given=each.prediction,
            skill=(each.skill or "").replace("_", " "),
        )
        for each in wrong[:most]
    )
    return made, len(wrong)


def _source(image: str) -> str:
    """Return what draws a picture of the test set again; "" for another one.

    >>> _source("test-000012"), _source("cat.png")
    ('test-12', '')
    """
    found = re.fullmatch(r"test-([0-9]{1,12})", image)
    return f"test-{int(found[1])}" if found is not None else ""
