"""Read tasks: the scenes' test set, or a JSONL file of images or clips, questions and answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, cast

from PIL import Image

from foveate.arguments import check_kind, listed
from foveate.bench.scoring import DEFAULT, Response
from foveate.bench.scoring.choice import lettered
from foveate.clips import Clip, check_sampling, open_clip
from foveate.errors import FoveateError, quoted, shown
from foveate.files import LIST_LIMIT, read_bytes, read_json_lines, shown_path
from foveate.images import decode_image, open_image
from foveate.numbers import Between, check_whole
from foveate.scenes import SKILLS, question_only_floor, scene
from foveate.scenes import test_set as scenes_test_set

FLOOR_SCENES: Final = 1_000
"""Training scenes that the question-only floor learns its answers from."""


@dataclass(frozen=True)
class TaskQuestion:
    """One question with what is right.

    Attributes:
        text: what is asked, with its options if it has any.
        answer: what is right, or all that is: one answer may occur several times.
        skill: what the question tests, if that is known.
        choices: the texts of the options, in order; () if the answer is free.
        id: its name in the data, if it has one.
    """

    text: str
    answer: str | Sequence[str]
    skill: str | None = None
    choices: tuple[str, ...] = ()
    id: str | None = None

    def __post_init__(self) -> None:
        check_kind("text of a question", self.text, str, "text")
        check_kind("skill of a question", self.skill, (str, NoneType), "text or None")
        check_kind("id of a question", self.id, (str, NoneType), "text or None")
        check_kind("choices of a question", self.choices, tuple, "a tuple of texts")
        for option in self.choices:
            check_kind("a choice", option, str, "text")
        if not isinstance(self.answer, str):
            answers = listed("answer of a question", self.answer, "text, or a list of texts")
            for answer in answers:
                check_kind("an answer", answer, str, "text")
            if not answers:
                raise FoveateError(f"the question {quoted(self.text)} has no answer; give one that is right")

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers that are right, as they were given: one may occur several times."""
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)

    def response(self, prediction: str = "") -> Response:
        """Return what a metric sees of an answer to this question."""
        return Response(prediction, self.answers, self.text, self.choices)

    def content(self) -> tuple[object, ...]:
        """Return what makes this question another one, for digests."""
        return (self.text, self.answer, self.skill, *([self.choices] if self.choices else []))


@dataclass(frozen=True)
class StoredImage:
    """An image in a dataset, which is read when it is needed.

    Attributes:
        read: returns the bytes of an image file.
        name: what errors call it.
    """

    read: Callable[[], bytes]
    name: str


@dataclass(frozen=True)
class TaskImage:
    """One image with all its questions. It is encoded once, and is one cluster of the statistics.

    Attributes:
        name: the scene's id, or the path as the file gives it.
        source: the image itself, or where it is.
        questions: in their order.
    """

    name: str
    source: Image.Image | Path | StoredImage
    questions: tuple[TaskQuestion, ...]

    def __post_init__(self) -> None:
        check_kind("name of an image", self.name, str, "text")
        kinds = (Image.Image, Path, StoredImage)
        check_kind("source of an image", self.source, kinds, "a PIL image, or the path of one")
        _check_members("questions", self.questions, TaskQuestion)

    def load(self) -> Image.Image:
        """Return the image, mode "RGB".

        Raises:
            FoveateError: it can't be read.
        """
        if isinstance(self.source, StoredImage):
            return decode_image(self.source.read(), self.source.name)
        return self.source if isinstance(self.source, Image.Image) else open_image(self.source)


@dataclass(frozen=True)
class TaskClip:
    """One clip with all its questions, as `TaskImage` has an image.

    Attributes:
        name: the path as the file gives it.
        source: the clip itself, or where it is.
        questions: in their order.
        frames: how many frames are taken of a file; `clips.open_clip` tells the default.
        fps: how many of each second, instead.
    """

    name: str
    source: Clip | Path
    questions: tuple[TaskQuestion, ...]
    frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        check_kind("name of a clip", self.name, str, "text")
        check_kind("source of a clip", self.source, (Clip, Path), "a Clip, or the path of one")
        _check_members("questions", self.questions, TaskQuestion)
        check_sampling(self.frames, self.fps)

    def load(self) -> Clip:
        """Return the clip.

        Raises:
            FoveateError: it can't be read.
        """
        return self.source if isinstance(self.source, Clip) else open_clip(self.source, self.frames, self.fps)


@dataclass(frozen=True)
class Task:
    """Pictures with questions.

    Attributes:
        name: what tables call it.
        pictures: each image and each clip once.
        digest: SHA-256 over images, clips, questions and answers, hexadecimal.
        skills: in the order tables have them; empty if questions have none.
        floor: computes the accuracy per skill of answering without the image; None if it isn't known.
        prompt: what is asked if nothing else is given: a text in which `{question}` stands for the question.
        score: the metric by which answers are scored if nothing else is given.
        longest: the most tokens of an answer if nothing else is given.
    """

    name: str
    pictures: tuple[TaskImage | TaskClip, ...]
    digest: str
    skills: tuple[str, ...] = ()
    floor: Callable[[], dict[str, float]] | None = None
    prompt: str = "{question}"
    score: str = DEFAULT
    longest: int = 16

    def __post_init__(self) -> None:
        for name in ("name", "digest", "prompt", "score"):
            check_kind(f"{name} of a task", getattr(self, name), str, "text")
        _check_members("pictures", self.pictures, TaskImage, TaskClip)
        check_whole("longest of a task", self.longest, Between(1))
        check_kind("skills", self.skills, tuple, "a tuple of names")
        for skill in self.skills:
            check_kind("a skill", skill, str, "text")
        if self.floor is not None and not callable(self.floor):
            raise FoveateError(f"floor of a task must be a function or None, not {shown(self.floor)}")

    @property
    def clips(self) -> int:
        """How many of the pictures are clips."""
        return sum(isinstance(picture, TaskClip) for picture in self.pictures)

    @property
    def has_clips(self) -> bool:
        """Whether a picture is a clip."""
        return self.clips > 0

    @property
    def questions(self) -> int:
        """The number of questions about all images and clips."""
        return sum(len(picture.questions) for picture in self.pictures)


def _check_members(name: str, members: object, *kinds: type) -> None:
    """Check that members are a tuple of at least one object of these kinds.

    Raises:
        FoveateError: they aren't.
    """
    names = " or ".join(kind.__name__ for kind in kinds)
    check_kind(name, members, tuple, f"a tuple of {names} objects")
    found = cast("tuple[object, ...]", members)
    for member in found:
        check_kind(f"a member of {name}", member, kinds, f"a {names}")
    if not found:
        raise FoveateError(f"{name} are none; give at least one {names}")


def normalised(answer: str) -> str:
    """What is compared: lower case, one blank between words, none at the ends.

    >>> normalised("  Dark  Red ")
    'dark red'
    """
    return " ".join(answer.lower().split())


def scenes(questions: int = 500, skip: int = 0) -> Task:
    """Return the first questions of the fixed test set of scenes, after `skip` scenes.

    Raises:
        FoveateError: fewer than one question is asked for.

    >>> task = scenes(30)
    >>> task.questions, len(task.pictures)
    (30, 3)
    """
    _check_count(questions)
    _check_skip(skip)
    found = list(scenes_test_set(questions, skip))
    digest = hashlib.sha256()
    pictures = []
    for one in found:
        asked = tuple(TaskQuestion(each.text, each.answer, each.skill) for each in one.questions)
        digest.update(one.image.tobytes() + repr([(each.text, each.answer, each.skill) for each in asked]).encode())
        pictures.append(TaskImage(one.id, one.image, asked))

    def floor() -> dict[str, float]:
        known = (each for seed in range(FLOOR_SCENES) for each in scene(seed).questions)
        return question_only_floor(known, (each for one in found for each in one.questions))

    present = {each.skill for picture in pictures for each in picture.questions}
    skills = tuple(skill for skill in SKILLS if skill in present)
    return Task("scenes", tuple(pictures), digest.hexdigest(), skills, floor)


def jsonl(
    path: str | Path,
    questions: int | None = None,
    skip: int = 0,
    *,
    frames: int | None = None,
    fps: float | None = None,
) -> Task:
    """Read a file with one JSON object per line: image or video, question, answer, and optionally choices, skill, id.

    An answer is text or a number, or a list of these, of which any is right; a box is a list of four numbers in such a
    list. With choices, it is the text of one, or its letter; they are written below the question.

    Every image and clip is opened and decoded here, so that a damaged one is found before the work begins.

    Args:
        path: the file; paths of images, video files and folders of frames are relative to its folder. Empty lines are
            skipped.
        questions: only this many of the first ones; None means all.
        skip: leave out this many of the first images and clips.
        frames: how many frames are taken of each clip; `clips.open_clip` tells the default.
        fps: how many of each second, instead.

    Raises:
        FoveateError: the file is missing or empty, a line is broken, or an image or a clip can't be read; its text
            gives the number of the line.
    """
    check_kind("path", path, (str, Path), "the path of a JSONL file")
    path = Path(path)
    check_sampling(frames, fps)
    if questions is not None:
        _check_count(check_whole("questions", questions))
    _check_skip(check_whole("skip", skip))
    name = shown_path(path)
    by_picture: dict[_Shown, list[TaskQuestion]] = {}
    first_line: dict[_Shown, int] = {}
    skipped: set[_Shown] = set()
    written: dict[_Shown, _Shown] = {}
    ids: dict[str, int] = {}
    for number, value in read_json_lines(path, advice="--data takes a JSONL file of questions"):
        if questions is not None and sum(map(len, by_picture.values())) >= questions:
            break
        (column, file), asked = _question(value, f"{name}, line {number}")
        check_id(asked.id, ids, number, name, "line")
        # One file is one image however its path is written: "cat.png" and "./cat.png" are one cluster.
        picture = written.setdefault((column, os.path.normpath(path.parent / file)), (column, file))
        if picture in skipped or (len(skipped) < skip and picture not in by_picture):
            skipped.add(picture)
            continue
        by_picture.setdefault(picture, []).append(asked)
        first_line.setdefault(picture, number)
    if not by_picture and skipped:
        raise FoveateError(f"{name} has {len(skipped)} images, and --skip leaves all of them out")
    if not by_picture:
        raise FoveateError(
            f'{name} holds no questions; each line is {{"image": "cat.png", "question": "...", "answer": "..."}}'
        )
    digest = hashlib.sha256()
    pictures: list[TaskImage | TaskClip] = []
    for (column, file), asked in by_picture.items():
        where, rows = path.parent / file, tuple(asked)
        made = TaskImage(file, where, rows) if column == "image" else TaskClip(file, where, rows, frames, fps)
        try:
            loaded = made.load()
        except FoveateError as error:
            raise FoveateError(f"{name}, line {first_line[column, file]}: {error}") from None
        if isinstance(loaded, Clip):
            digest.update(b"".join(frame.tobytes() for frame in loaded.frames) + repr(loaded.times).encode())
        else:
            digest.update(read_bytes(where, "image", limit=LIST_LIMIT))
        digest.update(repr([each.content() for each in asked]).encode())
        pictures.append(made)
    skills = sorted({each.skill for picture in pictures for each in picture.questions if each.skill is not None})
    return Task(path.stem, tuple(pictures), digest.hexdigest(), tuple(skills))


_Shown = tuple[str, str]
"""What a line asks about: the column, "image" or "video", and the path."""


def _question(value: Any, where: str) -> tuple[_Shown, TaskQuestion]:
    """Return what a line asks about, and its question."""
    if not isinstance(value, dict):
        raise FoveateError(f'{where} is not a JSON object; write {{"image": ..., "question": ..., "answer": ...}}')
    if "image" in value and "video" in value:
        raise FoveateError(f'{where} has both "image" and "video"; a line asks about one of them')
    column = "video" if "video" in value else "image"
    for key in (column, "question"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            state = "is empty or not text" if key in value else "is missing"
            raise FoveateError(f'{where}: "{key}" {state}; each line needs "image" or "video", "question" and "answer"')
    if "answer" not in value:
        raise FoveateError(f'{where}: "answer" is missing; each line needs "image" or "video", "question" and "answer"')
    skill, name = value.get("skill"), value.get("id")
    if skill is not None and (not isinstance(skill, str) or not skill.strip()):
        raise FoveateError(f'{where}: "skill" is empty or not text; leave it out or write a name')
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip()):
        raise FoveateError(f'{where}: "id" is no text and no number; leave it out or write a name')
    asked = question_of(value["question"].strip(), value["answer"], where, "answer", value.get("choices"), skill, name)
    return (column, value[column]), asked


def question_of(
    question: str, answer: Any, where: str, field: str, choices: Any = None, skill: str | None = None, name: Any = None
) -> TaskQuestion:
    """Return a question from the fields of a line or row.

    Args:
        question: its text.
        answer: text, a number, or a list of these; of boxes, a list of lists of four numbers.
        where: what errors begin with.
        field: what errors call the answer.
        choices: a list of texts or numbers, or None.
        skill: what it tests, or None.
        name: its id, or None.

    Raises:
        FoveateError: the answer or the choices are something else.
    """
    options: tuple[str, ...] = ()
    if choices is not None:
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise FoveateError(f'{where}: "choices" is no list of at least two options; write ["cat", "dog"]')
        options = tuple(_answer(each, f"{where}, a choice", field) for each in choices)
    answers = [_answer(each, where, field) for each in (answer if isinstance(answer, list | tuple) else [answer])]
    if not answers:
        raise FoveateError(f'{where}: "{field}" is an empty list; write the answers that are right')
    text = lettered(question, options) if options else question
    right = answers[0] if len(answers) == 1 else tuple(answers)
    return TaskQuestion(text, right, skill, options, None if name is None else str(name))


def check_id(name: str | None, seen: dict[str, int], number: int, source: str, noun: str) -> None:
    """Note the id of a question.

    Args:
        name: the id; None if it has none.
        seen: where each id was seen first; gets this one.
        number: of this line or row.
        source: of the lines.
        noun: what errors call one.

    Raises:
        FoveateError: another question has this id.
    """
    if name is not None and seen.setdefault(name, number) != number:
        raise FoveateError(
            f'{source}: {noun} {number} has the id "{name[:40]}" of {noun} {seen[name]}; each question needs its own'
        )


def _answer(value: Any, where: str, field: str = "answer") -> str:
    if type(value) in {int, float}:
        return str(value)
    if isinstance(value, list | tuple) and len(value) == 4 and all(type(each) in {int, float} for each in value):
        return ", ".join(map(str, value))
    if not isinstance(value, str) or not value.strip():
        wanted = 'text, a number, or a list of these (for true write "yes")'
        raise FoveateError(f'{where}: "{field}" is {_named(value)}; write {wanted}')
    return value


def _named(value: Any) -> str:
    names = {type(None): "null", bool: str(value).lower(), dict: "a mapping", list: "a list inside a list"}
    return names.get(type(value), "empty")


def _check_skip(skip: int) -> None:
    check_whole("skip", skip)
    if skip < 0:
        raise FoveateError(f"--skip {skip} leaves nothing out; give the number of images to leave out")


def _check_count(questions: int) -> None:
    check_whole("questions", questions)
    if questions < 1:
        raise FoveateError(f"--questions {questions} asks nothing; ask at least 1")
