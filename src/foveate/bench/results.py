"""Write the results folder: under a temporary name, so that an interrupted run can go on; renamed once complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foveate.bench.answers import Spent
from foveate.errors import FoveateError
from foveate.files import PARTIAL, replace_folder, write_json, write_text


@dataclass(frozen=True)
class Prediction:
    """One answer: a line of predictions.jsonl.

    Attributes:
        spec: the configuration, "dense" for none.
        number: of the question, from 0, over the whole task.
        image: the picture's name.
        skill: what the question tests, or None.
        question: its text.
        answer: the right one.
        prediction: the model's, as it was decoded.
        right: whether the two are the same after lower-casing and stripping.
    """

    spec: str
    number: int
    image: str
    skill: str | None
    question: str
    answer: str
    prediction: str
    right: bool


@dataclass(frozen=True)
class Part:
    """One configuration on some of the images, which is measured and written at once.

    Attributes:
        spec: the configuration.
        chunk: which images, from 0.
        before: visual tokens of these images in whole prompts, added up.
        after: those after the last step, added up.
        spent: where the time went.
        mean: those per decoder layer, averaged over layers and added up; None in results that are older.
        session: which run of the process measured it, from 1; an interrupted benchmark has several. 0 in older results.
    """

    spec: str
    chunk: int
    before: float
    after: float
    spent: Spent = field(default_factory=Spent)
    mean: float | None = None
    session: int = 0


class ResultsFolder:
    """The folder of one run.

    During the run, all files are in `<path>.partial`: answers are added to predictions.jsonl, and then a line to
    parts.jsonl, which marks them as complete. After an interruption, answers without that line are dropped.

    Args:
        path: the folder's final name.
        config: everything that decides the results; a folder of another config is refused.

    Raises:
        FoveateError: `path` holds something else, or the results of another config.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = json.loads(json.dumps(config))
        self.partial = path.with_name(path.name + PARTIAL)
        self.whole = False
        for folder in (path, self.partial):
            if folder.exists():
                self._check(folder)
        self.whole = (path / "metrics.json").is_file()
        self.session = 0
        self._answered: set[tuple[str, int]] = set()

    def _check(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FoveateError(f"{folder} is a file; name a folder with --out")
        file = folder / "config.json"
        if not file.is_file():
            if any(not each.name.endswith(PARTIAL) for each in folder.iterdir()):
                raise FoveateError(f"{folder} holds something that is no benchmark; name another folder with --out")
            return
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise FoveateError(f"{file} is damaged; remove the folder, or name another one with --out") from None
        if held != self.config:
            other = sorted(key for key in {*held, *self.config} if held.get(key) != self.config.get(key))
            raise FoveateError(
                f"{folder} holds the results of another run (different {', '.join(other)}), and nothing is "
                "overwritten; name another folder with --out, or remove this one"
            )

    def open(self) -> None:
        """Create the folder, or continue an interrupted run; incomplete parts are dropped."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FoveateError(
                f"{self.partial} can't be made ({error.strerror}); name another folder with --out"
            ) from None
        if not (self.partial / "config.json").exists():
            write_json(self.partial / "config.json", self.config)
        parts = self.parts()
        sizes = {(part.spec, part.chunk): part.spent.questions for part in parts}
        found: dict[tuple[str, int], dict[int, str]] = {}
        for line in _whole_lines(self.partial / "predictions.jsonl"):
            value = json.loads(line)
            found.setdefault((value["spec"], value["chunk"]), {})[value["number"]] = line
        kept = {key: list(lines.values()) for key, lines in found.items() if len(lines) == sizes.get(key)}
        write_text(self.partial / "predictions.jsonl", "".join(line for lines in kept.values() for line in lines))
        write_text(
            self.partial / "parts.jsonl",
            "".join(_line(asdict(part)) for part in parts if (part.spec, part.chunk) in kept),
        )
        self._answered = set(kept)
        self.session = 1 + max((part.session for part in parts), default=0)

    def parts(self) -> list[Part]:
        """Return the finished parts, each once: of those that were timed again, the latest."""
        folder = self.path if self.whole else self.partial
        found: dict[tuple[str, int], Part] = {}
        for line in _whole_lines(folder / "parts.jsonl"):
            value = json.loads(line)
            part = Part(**{**value, "spent": Spent(**value["spent"])})
            found[part.spec, part.chunk] = part
        return list(found.values())

    def add(self, part: Part, predictions: Iterable[Prediction]) -> None:
        """Write one part, its answers first; both are on the disk when this returns.

        A part that is there already was timed again: its answers stay, and its times are replaced.
        """
        key = (part.spec, part.chunk)
        if key not in self._answered:
            lines = "".join(_line({**asdict(each), "chunk": part.chunk}) for each in predictions)
            _append(self.partial / "predictions.jsonl", lines)
            self._answered.add(key)
        _append(self.partial / "parts.jsonl", _line(asdict(replace(part, session=self.session))))

    def predictions(self) -> list[Prediction]:
        """Return all answers so far."""
        folder = self.path if self.whole else self.partial
        found = []
        for line in _whole_lines(folder / "predictions.jsonl"):
            value = json.loads(line)
            value.pop("chunk", None)
            found.append(Prediction(**value))
        return found

    def finish(self, predictions: Sequence[Prediction], texts: Mapping[str, str]) -> None:
        """Write the answers in order and the other files, then rename the folder.

        Args:
            predictions: all of them, in the order that the file shall have.
            texts: per file name, its text; metrics.json among them.
        """
        write_text(self.partial / "predictions.jsonl", "".join(_line(asdict(each)) for each in predictions))
        for name, text in texts.items():
            write_text(self.partial / name, text)
        replace_folder(self.partial, self.path)
        self.whole = True


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[str]:
    """Return the complete lines of a file; a kill may have cut the last one."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("}\n")]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
