"""Write the results folder: under a temporary name, so that an interrupted run can go on; renamed once complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, get_type_hints

from foveate.bench.answers import Spent
from foveate.errors import FoveateError
from foveate.files import (
    LIST_LIMIT,
    LOCK,
    OWNER,
    PARTIAL,
    DamagedFile,
    FileError,
    FolderLock,
    append_text,
    check_new_folder,
    files_in,
    is_file,
    kind_of,
    make_folder,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    remove_folder,
    replace_folder,
    shown_path,
    write_json,
    write_text,
)

_ADVICE: Final = "wait for it, or name another folder with --out"
_FINISHED: Final = "finished"
"""The folder inside the partial one that gets the final name."""

Record = TypeVar("Record")


@dataclass(frozen=True)
class Prediction:
    """One answer: a line of predictions.jsonl.

    Attributes:
        spec: the configuration, "dense" for none.
        number: of the question, from 0, over the whole task.
        image: the picture's name.
        skill: what the question tests, or None.
        question: its text.
        answer: the right one; several stand in one line, " | " between them.
        prediction: the model's, as it was decoded.
        right: whether its score is 1.
        score: from 0 to 1, by the run's metric.
        cut: whether the answer reached the most tokens without an end.
        id: the question's name in the data, or None.
    """

    spec: str
    number: int
    image: str
    skill: str | None
    question: str
    answer: str
    prediction: str
    right: bool
    score: float = -1.0
    cut: bool = False
    id: str | None = None

    def __post_init__(self) -> None:
        if self.score < 0:
            # Results that are older say whether an answer is right, and no more.
            object.__setattr__(self, "score", float(self.right))


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
    """The folder of one run, which one process at a time writes to: `with` locks it.

    During the run, all files are in `<path>.partial`: answers are added to predictions.jsonl, and then a line to
    parts.jsonl, which marks them as complete. After an interruption, answers without that line are dropped.

    Args:
        path: the folder's final name.
        config: everything that decides the results; a folder of another config is refused.

    Raises:
        FolderInUse: another process writes to it.
        FoveateError: `path` can't be written, holds something else, or holds the results of another config; or a
            finished folder is damaged.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = check_results_folder(path)
        self.config = json.loads(json.dumps(config))
        self.partial = _partial(self.path)
        self.session = 0
        self._lock = FolderLock(self.partial, _ADVICE)
        self._answered: set[tuple[str, int]] = set()
        self.whole = is_file(self.path / "metrics.json")
        for folder in (self.path, self.partial):
            self._check_config(folder)
        if self.whole:
            self._check_complete(self.predictions())
            self.metrics()

    def _check_config(self, folder: Path) -> None:
        file = folder / "config.json"
        if kind_of(folder) == "missing" or not is_file(file):
            return
        try:
            held = read_json(file, limit=LIST_LIMIT, strict=False)
        except DamagedFile:
            held = None
        if not isinstance(held, dict):
            raise _damaged(file, "it holds no configuration")
        if held != self.config:
            other = sorted(key for key in {*held, *self.config} if held.get(key) != self.config.get(key))
            raise FoveateError(
                f"{shown_path(folder)} holds the results of another run (different {', '.join(other)}), and nothing is "
                "overwritten; name another folder with --out, or remove this one"
            )

    # One owner

    def __enter__(self) -> Self:
        """Lock the folder and create it, or continue an interrupted run; incomplete parts are dropped.

        If another process has finished the run meanwhile, `whole` says so, and nothing is locked.

        Raises:
            FolderInUse: another process writes to it.
            FoveateError: it can't be written.
        """
        if self.whole and kind_of(self.partial) == "missing":
            return self
        self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the folder; what is written so far stays."""
        self._lock.release()

    def _open(self) -> None:
        self.whole = is_file(self.path / "metrics.json")
        if self.whole:
            # Left by a process that was killed after it had finished, or made by the lock.
            remove_folder(self.partial)
            self._check_config(self.path)
            self._check_complete(self.predictions())
            return
        if not is_file(self.partial / "config.json"):
            write_json(self.partial / "config.json", self.config)
        remove_folder(self.partial / _FINISHED)
        parts = self.parts()
        sizes = {(part.spec, part.chunk): part.spent.questions for part in parts}
        lines: dict[tuple[str, int], list[str]] = {}
        numbers: dict[tuple[str, int], list[int]] = {}
        for value in self._whole_lines("predictions.jsonl"):
            spec, chunk, number = (value.get(name) for name in ("spec", "chunk", "number"))
            if not (isinstance(spec, str) and isinstance(chunk, int) and isinstance(number, int)):
                continue
            key = (spec, chunk)
            # Answers that belong to no part that has been closed were interrupted.
            if key in sizes:
                lines.setdefault(key, []).append(_line(value))
                numbers.setdefault(key, []).append(number)
        times = Counter((spec, number) for (spec, _), found in numbers.items() for number in found)
        kept = {
            key: "".join(lines[key])
            for key, found in numbers.items()
            if len(found) == sizes[key] and all(times[key[0], number] == 1 for number in found)
        }
        write_text(self.partial / "predictions.jsonl", "".join(kept.values()))
        write_text(
            self.partial / "parts.jsonl",
            "".join(_line(asdict(part)) for part in parts if (part.spec, part.chunk) in kept),
        )
        self._answered = set(kept)
        self.session = 1 + max((part.session for part in parts), default=0)

    # Reading

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json of a finished run holds.

        Raises:
            FoveateError: it is damaged.
        """
        file = self.path / "metrics.json"
        try:
            found = read_json(file, limit=LIST_LIMIT, strict=False)
            measured = sorted(row["spec"] for row in found["configurations"])
        except (DamagedFile, KeyError, TypeError):
            measured = None
        if measured != sorted(self.config["specs"]):
            raise _damaged(file, "it holds the figures of other configurations, or none")
        return found

    def parts(self) -> list[Part]:
        """Return the finished parts, each once: of those that were timed again, the latest."""
        found: dict[tuple[str, int], Part] = {}
        for value in self._lines("parts.jsonl"):
            try:
                spent = read_record(Spent, value.get("spent"), "its times")
                part = read_record(Part, {**value, "spent": spent}, "a part")
            except DamagedFile as error:
                if self.whole:
                    raise _damaged(self.path / "parts.jsonl", str(error)) from None
                continue
            if part.spec in self.config["specs"]:
                found[part.spec, part.chunk] = part
        return list(found.values())

    def predictions(self) -> list[Prediction]:
        """Return all answers so far.

        Raises:
            FoveateError: those of a finished run are damaged.
        """
        found = []
        for value in self._lines("predictions.jsonl"):
            value.pop("chunk", None)
            try:
                found.append(read_record(Prediction, value, f"answer {len(found) + 1}"))
            except DamagedFile as error:
                raise _damaged(self._place / "predictions.jsonl", str(error)) from None
        return found

    @property
    def _place(self) -> Path:
        return self.path if self.whole else self.partial

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file: of an interrupted run, those that a kill has left whole."""
        if not self.whole:
            yield from self._whole_lines(name)
            return
        try:
            for number, value in read_json_lines(self.path / name, strict=False):
                if not isinstance(value, dict):
                    raise DamagedFile(f"line {number} is no JSON object")
                yield value
        except FileError as error:
            raise _damaged(self.path / name, str(error)) from None

    def _whole_lines(self, name: str) -> Iterator[dict[str, Any]]:
        file = self.partial / name
        if kind_of(file) != "file":
            return
        *whole, _ = read_bytes(file, limit=LIST_LIMIT).split(b"\n")
        for line in whole:
            try:
                value = parse_json(line.decode("utf-8"), "a line", strict=False)
            except (DamagedFile, UnicodeDecodeError):
                continue
            if isinstance(value, dict):
                yield value

    def _check_complete(self, predictions: Sequence[Prediction]) -> None:
        """Check that each configuration has answered each question once.

        Raises:
            FoveateError: it hasn't.
        """
        times = Counter((each.spec, each.number) for each in predictions)
        asked = {(spec, number) for spec in self.config["specs"] for number in range(self.config["questions"])}
        double = sum(1 for count in times.values() if count > 1)
        foreign = len(times.keys() - asked)
        missing = len(asked - times.keys())
        wrong = [
            f"{count} {what}"
            for count, what in ((double, "answered twice"), (missing, "missing"), (foreign, "of other runs"))
            if count
        ]
        if wrong:
            raise _damaged(self._place / "predictions.jsonl", f"of its answers, {', '.join(wrong)}")

    # Writing

    def add(self, part: Part, predictions: Iterable[Prediction]) -> None:
        """Write one part, its answers first; both are on the disk when this returns.

        A part that is there already was timed again: its answers stay, and its times are replaced.

        Raises:
            FoveateError: the disk is full, or the folder can't be written any more.
        """
        key = (part.spec, part.chunk)
        if key not in self._answered:
            lines = "".join(_line({**asdict(each), "chunk": part.chunk}) for each in predictions)
            append_text(self.partial / "predictions.jsonl", lines)
            self._answered.add(key)
        append_text(self.partial / "parts.jsonl", _line(asdict(replace(part, session=self.session))))

    def finish(self, predictions: Sequence[Prediction], texts: Mapping[str, str]) -> None:
        """Write the finished folder, and give it its name.

        The files of the interrupted run stay as they are until then, so that a kill at any moment loses nothing.

        Args:
            predictions: all of them, in the order that the file shall have.
            texts: per file name, its text; metrics.json among them.

        Raises:
            FoveateError: an answer is missing or there twice, or the folder can't be written.
        """
        self._check_complete(predictions)
        finished = make_folder(self.partial / _FINISHED)
        write_json(finished / "config.json", self.config)
        write_text(finished / "parts.jsonl", "".join(_line(asdict(part)) for part in self.parts()))
        write_text(finished / "predictions.jsonl", "".join(_line(asdict(each)) for each in predictions))
        for name, text in texts.items():
            write_text(finished / name, text)
        replace_folder(finished, self.path)
        self.whole = True
        self._lock.release()
        remove_folder(self.partial)


def check_results_folder(path: Path) -> Path:
    """Check that a benchmark can be written to a folder, or was: before the model is loaded.

    Returns:
        The folder; if `path` is a link, the one that it leads to.

    Raises:
        FolderInUse: another process writes to it.
        FoveateError: it holds something else or can't be written.
    """
    if is_file(path / "metrics.json") and is_file(path / "config.json"):
        # A finished run is only read.
        return path
    folder = check_new_folder(path)
    if kind_of(folder) == "folder" and files_in(folder):
        raise FoveateError(f"{shown_path(path)} holds something that is no benchmark; name another folder with --out")
    partial = _partial(folder)
    kind = kind_of(partial)
    if kind == "missing":
        return folder
    if kind != "folder":
        raise FoveateError(
            f"{shown_path(partial)}, where results are gathered, is a file; name another folder with --out"
        )
    names = {file.name for file in files_in(partial)} - {LOCK, OWNER}
    if "config.json" not in names and any(not name.endswith(PARTIAL) for name in names):
        raise FoveateError(
            f"{shown_path(partial)}, where results are gathered, holds something that is no benchmark; name another "
            "folder with --out"
        )
    FolderLock(partial, _ADVICE).check_free()
    return folder


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _damaged(file: Path, how: str) -> FoveateError:
    return FoveateError(
        f"{shown_path(file)} is damaged ({how}); remove its folder to measure again, or name another one with --out"
    )


def read_record(kind: type[Record], value: Any, what: str) -> Record:
    """Return a dataclass whose fields a mapping holds.

    Raises:
        DamagedFile: a field is missing, unknown or of another type.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise DamagedFile(f"{what} is no mapping")
    types = get_type_hints(kind)
    lacking = [
        each.name
        for each in fields(kind)  # pyright: ignore[reportArgumentType]
        if each.name not in value and each.default is MISSING and each.default_factory is MISSING
    ]
    wrong = [name for name, held in value.items() if name not in types or not _fits(held, types[name])]
    if lacking or wrong:
        raise DamagedFile(f"{what} has {'no' if lacking else 'a wrong'} {(lacking or wrong)[0]}")
    return kind(**value)


def _fits(value: Any, expected: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return isinstance(value, expected)
    return isinstance(value, (expected | int) if expected in (float, float | None) else expected)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
