"""Read what a finished benchmark has left on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bench.results import Prediction, ResultsFolder
from foveate.errors import FoveateError
from foveate.files import LIST_LIMIT, DamagedFile, is_file, is_folder, read_json, shown_path

__all__ = ["Finished", "is_finished", "read_finished"]


@dataclass(frozen=True)
class Finished:
    """What one finished run of `foveate bench` holds.

    Attributes:
        folder: in which it is.
        config: what decided the results.
        metrics: what was measured.
        environment: the machine; empty in results that are older.
        predictions: all answers, those of the dense model first.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    predictions: tuple[Prediction, ...]


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a finished run; its files may be damaged."""
    return is_file(folder / "metrics.json") and is_file(folder / "config.json")


def read_finished(folder: str | Path) -> Finished:
    """Read the results folder of a finished run.

    Raises:
        FoveateError: there is no such folder, its run isn't finished, or a file is damaged.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise FoveateError(f"{shown_path(folder)} is no folder; name one that foveate bench has written (--out)")
    if not is_finished(folder):
        raise FoveateError(
            f"{shown_path(folder)} holds no finished benchmark (metrics.json and config.json); name a folder that "
            "foveate bench has written (--out), and finish an interrupted run by the command that began it"
        )
    place = folder / "environment.json"
    try:
        config = read_json(folder / "config.json", limit=LIST_LIMIT, strict=False)
        if not isinstance(config["specs"], list) or "questions" not in config:
            raise KeyError("specs, questions")
        results = ResultsFolder(folder, config)
        environment = read_json(place, strict=False) if is_file(place) else {}
        return Finished(folder, config, results.metrics(), environment, tuple(results.predictions()))
    except (DamagedFile, KeyError, TypeError, AttributeError) as error:
        raise FoveateError(f"{shown_path(folder)} is damaged ({error}); run the benchmark again") from None
