"""Read finished runs, and refuse to compare those of different questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bench.finished import read_finished
from foveate.bench.results import Prediction
from foveate.errors import FoveateError
from foveate.files import shown_path

__all__ = ["Answers", "Results", "read_results"]


@dataclass(frozen=True)
class Answers:
    """All answers of one configuration.

    Attributes:
        name: the spec; of several runs, with the folder's name before it.
        row: what metrics.json says about it.
        predictions: in the order of the questions.
    """

    name: str
    row: dict[str, Any]
    predictions: tuple[Prediction, ...]

    @property
    def scores(self) -> list[float]:
        """The score of each question."""
        return [each.score for each in self.predictions]


@dataclass(frozen=True)
class Results:
    """Configurations that answered the same questions.

    Attributes:
        task: what was asked.
        answers: by name; the first one is dense.
        runs: the names of each run's configurations, in their order.
    """

    task: str
    answers: dict[str, Answers]
    runs: tuple[tuple[str, ...], ...]

    @property
    def first(self) -> Answers:
        """The dense model of the first run."""
        return next(iter(self.answers.values()))

    @property
    def images(self) -> list[str]:
        """The image of each question."""
        return [each.image for each in self.first.predictions]

    @property
    def skills(self) -> dict[str, list[int]]:
        """The numbers of the questions of each skill."""
        found: dict[str, list[int]] = {}
        for number, each in enumerate(self.first.predictions):
            if each.skill is not None:
                found.setdefault(each.skill, []).append(number)
        return found


def read_results(folders: Sequence[str | Path]) -> Results:
    """Read results folders of `foveate bench` that answered the same questions.

    Raises:
        FoveateError: one is no finished run or is damaged, or they asked different questions, or scored them otherwise.
    """
    paths = [Path(folder) for folder in folders]
    runs = [read_finished(path) for path in paths]
    configs = [run.config for run in runs]
    for path, config in zip(paths[1:], configs[1:], strict=True):
        both = (configs[0], config)
        for key, what in (("data", "answer different questions"), ("scoring", "are scored by different metrics")):
            if config.get(key) != configs[0].get(key) or config["questions"] != configs[0]["questions"]:
                told = [f"{each['task']}, {each['questions']} questions, {each.get('scoring')}" for each in both]
                raise FoveateError(
                    f"{shown_path(paths[0])} and {shown_path(path)} {what} ({told[0]}; {told[1]}); compare runs with "
                    "the same --data, --questions, --skip and --score"
                )
    answers: dict[str, Answers] = {}
    names: list[tuple[str, ...]] = []
    for path, run in zip(paths, runs, strict=True):
        own = []
        for row in run.metrics["configurations"]:
            name = row["spec"] if len(paths) == 1 else f"{path.name}: {row['spec']}"
            if name in answers:
                raise FoveateError(f"{shown_path(path)} is given twice, or two folders have its name; rename one")
            given = sorted((each for each in run.predictions if each.spec == row["spec"]), key=lambda each: each.number)
            answers[name] = Answers(name, row, tuple(given))
            own.append(name)
        names.append(tuple(own))
    return Results(str(configs[0]["task"]), answers, tuple(names))
