"""Read tasks from datasets of the `datasets` library: by name, or from a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from foveate.bench.scoring import DEFAULT
from foveate.bench.tasks import StoredImage, Task, TaskImage, TaskQuestion, check_id, question_of
from foveate.dataset_rows import load_rows, part_of
from foveate.errors import FoveateError
from foveate.files import LIST_LIMIT, kind_of, read_bytes

__all__ = ["Columns", "DatasetTask", "Images", "is_dataset_name", "read_columns", "read_task"]

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""A dataset on the hub: owner and name."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which column of a dataset holds what; "" for what it lacks.

    Attributes:
        image: pictures, bytes or paths of picture files, or lists of one; or the keys of `DatasetTask.images`.
        question: what is asked.
        answer: what is right: text, a number, or a list of these or of mappings with "answer". A number beside choices
            that are no numbers is that of the right one, from 0.
        choices: the options, as a list; or several columns, "A/B/C", of which empty ones are left out.
        id: what no two questions share.
        image_id: what questions about one picture share; without it, pictures with the same bytes are one.
        skill: what the question tests.
    """

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    choices: str = ""
    id: str = ""
    image_id: str = ""
    skill: str = ""

    def names(self) -> list[tuple[str, str]]:
        """Return each column with what it holds.

        >>> Columns(choices="A/B").names()[2:]
        [('answer', 'answer'), ('choices', 'A'), ('choices', 'B')]
        """
        return [(each.name, name) for each in fields(self) for name in getattr(self, each.name).split("/") if name]


@dataclass(frozen=True)
class Images:
    """Another part of a dataset that holds the pictures, for datasets that keep them apart.

    Attributes:
        subset: its name.
        split: its split.
        key: the column of what `Columns.image` refers to.
        image: the column of the pictures.
    """

    subset: str
    split: str
    key: str
    image: str = "image"


@dataclass(frozen=True)
class DatasetTask:
    """How to ask the questions of one dataset.

    Attributes:
        name: what tables call it.
        dataset: its name on the hub, or a folder.
        subset: one of its parts, "" for the only one.
        split: such as "test"; "" for the only one.
        columns: which hold what.
        prompt: what is asked: a text in which `{question}` stands for the question.
        score: the metric.
        longest: the most tokens of an answer.
        paper: where it comes from.
        ask: writes the question of a row in another way.
        keep: whether a row belongs to the task; None keeps all.
        reads: further columns that `ask` and `keep` look at.
        images: where the pictures are, if not in the rows.
    """

    name: str
    dataset: str
    subset: str = ""
    split: str = ""
    columns: Columns = field(default_factory=Columns)
    prompt: str = "{question}"
    score: str = DEFAULT
    longest: int = 16
    paper: str = ""
    ask: Callable[[Row], str] | None = None
    keep: Callable[[Row], bool] | None = None
    reads: tuple[str, ...] = ()
    images: Images | None = None


def is_dataset_name(text: str) -> bool:
    """Return whether a text is written like the name of a dataset on the hub, and no file's.

    >>> is_dataset_name("lmms-lab/POPE"), is_dataset_name("data/questions.jsonl"), is_dataset_name("questions")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None and Path(text).suffix.lower() not in (".json", ".jsonl", ".txt", ".csv")


def read_columns(text: str, base: Columns | None = None) -> Columns:
    """Read which columns hold what, such as "question=query,image=img,answer=labels".

    Args:
        text: parted by commas; "answers" is "answer".
        base: gives the others.

    Raises:
        FoveateError: it can't be read.

    >>> read_columns("question=query,choices=A/B").question
    'query'
    """
    known = [each.name for each in fields(Columns)]
    found = {each: getattr(base or Columns(), each) for each in known}
    for part in text.split(","):
        what, sign, name = (piece.strip() for piece in part.partition("="))
        what = "answer" if what == "answers" else what
        if not sign or not name or what not in known:
            raise FoveateError(
                f'--columns: "{part.strip()[:60]}" names no column; write for instance question=query,image=img with '
                f"any of {', '.join(known)}"
            )
        found[what] = name
    return Columns(**found)


def read_task(
    source: DatasetTask, questions: int | None = None, skip: int = 0, folder: str | Path | None = None
) -> Task:
    """Return the questions of a dataset, gathered by image.

    Args:
        source: how to ask them.
        questions: only this many of the first ones; None means all.
        skip: leave out this many of the first images.
        folder: a copy of the dataset on the disk, if it shall not come from the hub.

    Raises:
        FoveateError: the dataset can't be loaded, is empty, lacks a column, asks two questions under one id, or a row
            can't be read.
    """
    where = str(folder) if folder is not None else source.dataset
    rows = _load(where, source.subset, source.split)
    columns = _checked(source, rows, where)
    pictures = _Pictures(rows, source, where)
    texts = rows.remove_columns([columns.image]) if source.images is None else rows
    ids: dict[str, int] = {}
    first: dict[str, int] = {}
    skipped: set[str] = set()
    asked: dict[str, list[TaskQuestion]] = {}
    for number, row in enumerate(texts):
        if questions is not None and sum(map(len, asked.values())) >= questions:
            break
        if source.keep is not None and not source.keep(row):
            continue
        one = _question(row, source, columns, texts, f"{where}, row {number}")
        check_id(one.id, ids, number, where, "row")
        key = str(row[columns.image_id]) if columns.image_id else pictures.key(number, row)
        if key in skipped or (len(skipped) < skip and key not in asked):
            skipped.add(key)
            continue
        first.setdefault(key, number)
        asked.setdefault(key, []).append(one)
    if not asked:
        what = f"--skip leaves out all {len(skipped)} images of" if skipped else "no row fits the task in"
        raise FoveateError(f"{what} {where}{_part(source)}; choose another split or fewer images to skip")
    digest = hashlib.sha256()
    made = []
    for key, own in asked.items():
        number = first[key]
        image = pictures.stored(number, texts[number])
        digest.update(image.read() + repr([each.content() for each in own]).encode())
        name = key if columns.image_id else f"row {number}"
        made.append(TaskImage(name, image, tuple(own)))
    skills = sorted({each.skill for own in asked.values() for each in own if each.skill is not None})
    return Task(
        source.name,
        tuple(made),
        digest.hexdigest(),
        tuple(skills),
        prompt=source.prompt,
        score=source.score,
        longest=source.longest,
    )


# Loading


def _load(name: str, subset: str, split: str) -> Any:
    """Return the rows of a dataset.

    Raises:
        FoveateError: there is no such folder, and it is no name of a dataset; or as `load_rows`.
    """
    if kind_of(name) == "missing" and not is_dataset_name(name):
        raise FoveateError(f"there is no folder {name}, and it is no name of a dataset, such as lmms-lab/POPE")
    otherwise = 'install foveate with its data extra (pip install ".[data]" in a clone), or give --data a JSONL file'
    return load_rows(name, subset, split, choose="--split", otherwise=otherwise)


def _part(source: DatasetTask) -> str:
    return part_of(source.subset, source.split)


def _checked(source: DatasetTask, rows: Any, where: str) -> Columns:
    """Return the columns that the rows have.

    Raises:
        FoveateError: they lack one.
    """
    there = list(rows.column_names)
    columns = source.columns
    if columns.answer == "answer" and "answer" not in there and "answers" in there:
        columns = replace(columns, answer="answers")
    # The last of several columns of options may be missing.
    options = [name for name in columns.choices.split("/") if name in there]
    for what, name in [*columns.names(), *(("rows", each) for each in source.reads)]:
        if name in there or (what == "choices" and len(options) >= 2):
            continue
        raise FoveateError(
            f'{where}{_part(source)} has no column "{name}" for the {what}; it has {", ".join(there)}: '
            f"say which with --columns {what}=NAME"
        )
    return columns


# Rows


def _question(row: Row, source: DatasetTask, columns: Columns, rows: Any, where: str) -> TaskQuestion:
    question = row[columns.question] if source.ask is None else source.ask(row)
    if not isinstance(question, str) or not question.strip():
        raise FoveateError(f'{where}: "{columns.question}" is empty or no text; it is the question')
    choices = _choices(row, columns)
    answer = _answers(row[columns.answer], rows.features.get(columns.answer))
    if answer in (None, "", []):
        raise FoveateError(
            f'{where}: "{columns.answer}" is empty; splits whose answers are not published can\'t be scored'
        )
    if choices and type(answer) is int:
        texts = [str(each) for each in choices]
        if not any(re.fullmatch(r"[-+]?[\d.,]+", each.strip()) for each in texts):
            if not 0 <= answer < len(texts):
                raise FoveateError(f'{where}: "{columns.answer}" is {answer}, and the choices are {len(texts)}')
            answer = texts[answer]
    skill = row[columns.skill] if columns.skill else None
    name = row[columns.id] if columns.id else None
    skill = None if skill is None or not str(skill).strip() else str(skill)
    return question_of(question.strip(), answer, where, columns.answer, choices or None, skill, name)


def _answers(value: Any, feature: Any) -> Any:
    """Return the answers of a cell: names of classes rather than their numbers, and text rather than mappings."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "answer" in each for each in value):
        return [each["answer"] for each in value]
    names = getattr(feature, "names", None)
    return names[value] if names and type(value) is int and 0 <= value < len(names) else value


def _choices(row: Row, columns: Columns) -> list[Any]:
    if not columns.choices:
        return []
    names = columns.choices.split("/")
    if len(names) == 1:
        return list(row[names[0]] or [])
    found = [row.get(name) for name in names]
    return [each for each in found if each is not None and str(each).strip() not in ("", "nan")]


class _Pictures:
    """The pictures of a dataset's rows, as they are stored."""

    def __init__(self, rows: Any, source: DatasetTask, where: str) -> None:
        self.where = where
        self.folder = Path(where) if kind_of(where) == "folder" else Path()
        self.keys = self.column = source.columns.image
        self.numbers: dict[str, int] | None = None
        if source.images is None:
            self.rows = _undecoded(rows, self.column)
            return
        apart = source.images
        loaded = _load(where, apart.subset, apart.split)
        for name in (apart.key, apart.image):
            if name not in loaded.column_names:
                there = ", ".join(loaded.column_names)
                raise FoveateError(f'{where} (subset {apart.subset}) has no column "{name}"; it has {there}')
        self.numbers = {str(key): number for number, key in enumerate(loaded[apart.key])}
        self.column = apart.image
        self.rows = _undecoded(loaded, self.column)

    def key(self, number: int, row: Row) -> str:
        """Return what rows about one picture share."""
        return hashlib.sha256(self.stored(number, row).read()).hexdigest()

    def stored(self, number: int, row: Row) -> StoredImage:
        """Return the picture of a row.

        Raises:
            FoveateError: it is to be with others, and isn't there.
        """
        place, name = number, f"{self.where}, row {number}"
        if self.numbers is not None:
            key = str(row[self.keys])
            if key not in self.numbers:
                raise FoveateError(f'{name} asks about the picture "{key[:40]}", and there is none')
            place = self.numbers[key]
        return StoredImage(lambda: self._bytes(place, name), f"the image of {name},")

    def _bytes(self, number: int, name: str) -> bytes:
        value = self.rows[number][self.column]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value.strip():
            return read_bytes(self.folder / value, "image", limit=LIST_LIMIT)
        found = f"{len(value)} pictures" if isinstance(value, list) else "no picture"
        raise FoveateError(f'{name}: "{self.column}" holds {found}; a question is about one')


def _undecoded(rows: Any, column: str) -> Any:
    """Return the rows with a column of pictures as bytes of files."""
    import datasets

    feature = rows.features[column]
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return rows.cast_column(column, type(feature)(datasets.Image(decode=False)))
    return rows
