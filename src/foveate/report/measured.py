"""Read results folders of `foveate bench`, one or several, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bench.configurations import DENSE, name_of
from foveate.bench.finished import read_finished
from foveate.bench.results import Prediction
from foveate.errors import FoveateError
from foveate.files import shown_path

__all__ = ["Change", "Measured", "read_runs"]


@dataclass(frozen=True)
class Change:
    """One question that some configuration answers otherwise than the dense model.

    Attributes:
        number: of the question, from 0.
        image: the picture's name.
        skill: what the question tests, or None.
        question: its text.
        answer: the right one; several stand in one line, " | " between them.
        dense: the dense model's answer and its score, from 0 to 1.
        others: per configuration that answers otherwise, its answer and score.
    """

    number: int
    image: str
    skill: str | None
    question: str
    answer: str
    dense: tuple[str, float]
    others: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class Measured:
    """What one finished run of `foveate bench` left on the disk.

    Attributes:
        name: of the run: what its folder is called.
        config: what decided the results.
        metrics: what was measured.
        environment: the machine.
        predictions: all answers, those of the dense model first.
        said: sentences that stand before those about its figures.
    """

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    predictions: tuple[Prediction, ...]
    said: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> Measured:
        """Read a results folder.

        Args:
            folder: that `foveate bench` has finished.
            name: of the run, if it isn't the folder's.

        Raises:
            FoveateError: there is no such folder, its run isn't finished, or a file is damaged.
        """
        run = read_finished(folder)
        return cls(name or folder.name, run.config, run.metrics, run.environment, run.predictions)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """What was measured of each configuration, the dense model first."""
        return list(self.metrics["configurations"])

    @property
    def specs(self) -> list[str]:
        """The configurations without the dense model."""
        return [row["spec"] for row in self.rows if row["spec"] != name_of(DENSE)]

    def changes(self) -> list[Change]:
        """List the questions that a configuration answers otherwise than the dense model, in their order."""
        dense: dict[int, Prediction] = {}
        others: dict[int, dict[str, tuple[str, float]]] = {}
        for each in self.predictions:
            if each.spec == name_of(DENSE):
                dense[each.number] = each
        for each in self.predictions:
            reference = dense[each.number]
            if (each.prediction, each.score) != (reference.prediction, reference.score):
                others.setdefault(each.number, {})[each.spec] = (each.prediction, each.score)
        return [
            Change(
                number,
                (one := dense[number]).image,
                one.skill,
                one.question,
                one.answer,
                (one.prediction, one.score),
                others[number],
            )
            for number in sorted(others)
        ]


def read_runs(folders: Sequence[Path]) -> tuple[Measured, ...]:
    """Read several results folders; runs whose folders are called the same get their parents' names as well.

    Raises:
        FoveateError: none is given, one is given twice, or one can't be read.
    """
    if not folders:
        raise FoveateError("no results are given; name a folder that foveate bench has written")
    real = [folder.resolve() for folder in folders]
    if len(set(real)) < len(real):
        twice = next(folder for folder, place in zip(folders, real) if real.count(place) > 1)
        raise FoveateError(f"{shown_path(twice)} is given twice; name each results folder once")
    names = [folder.name for folder in real]
    longer = [f"{folder.parent.name}/{folder.name}" if names.count(folder.name) > 1 else folder.name for folder in real]
    return tuple(Measured.read(folder, name) for folder, name in zip(folders, longer))
