"""Read conversations: generated scenes and clips, a file of JSON lines, a Hugging Face dataset."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from PIL import Image

from foveate.dataset_rows import is_saved_dataset, load_rows
from foveate.errors import FoveateError, quoted
from foveate.files import (
    LIST_LIMIT,
    FileError,
    FileFacts,
    MissingFile,
    facts_of_file,
    kind_of,
    open_file,
    read_json,
    read_json_lines,
    shown_path,
)
from foveate.images import open_image
from foveate.scenes import caption, clip, scene
from foveate.train.recipe import Data
from foveate.train.settings import RecipeError

Message = dict[str, Any]
"""A turn as chat templates take it: `role`, and `content` as a list of parts."""


@dataclass(frozen=True)
class Conversation:
    """One training example: turns of user and assistant, and their images.

    Attributes:
        name: where it comes from, for errors.
        images: each a picture or the path of one, in the order of the image parts.
        messages: the turns.
        place: how many conversations of the run come before it, over all passes and processes; what objectives do in
            turns goes by it.
    """

    name: str
    images: tuple[Image.Image | Path, ...]
    messages: tuple[Message, ...]
    place: int = 0

    def pictures(self) -> list[Image.Image]:
        """Open the images.

        Raises:
            FoveateError: one can't be read; the text names the conversation.
        """
        try:
            return [each if isinstance(each, Image.Image) else open_image(each) for each in self.images]
        except FoveateError as error:
            raise FoveateError(f"{self.name}: {error}") from None


class Conversations(Protocol):
    """A sequence of conversations; each is made when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Conversation: ...
    def name(self, index: int) -> str:
        """Return what errors call a row."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Return what tells these conversations from others that a recipe may find in the same place, part by part.

        Nothing where the recipe says everything. Of image files, sizes and times of change count, and not the content.
        """
        ...


CONVERSATIONS, IMAGES = "conversations", "image files"
"""What errors call the parts of a fingerprint."""
_TURN_FORMS: Final = (("messages",), ("conversations",), ("question", "answer"))
"""The keys that hold a row's turns, form by form."""
_TURNS: Final = ("messages", "conversations")
"""Those of them that hold turns whose parts may be images."""
_IMAGE_FORMS: Final = (("images",), ("image",))
"""The keys that hold a row's images."""
_UNREAD: Final = ("image", "url", "base64")
"""What chat templates take beside `path` in an image's part, and training doesn't."""
_BLOCK: Final = 1 << 20


class Scenes:
    """Generated scenes, each with some of its questions as the turns of one conversation, some described at the end.

    >>> one = Scenes(4, turns=2)[0]
    >>> one.name, len(one.images), [m["role"] for m in one.messages]
    ('scene 0', 1, ['user', 'assistant', 'user', 'assistant'])
    """

    def __init__(self, count: int, turns: int = 8, first: int = 0, captions: float = 0.0) -> None:
        self.count, self.turns, self.first, self.captions = count, turns, first, captions

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return `scene` and its seed."""
        return f"scene {self.first + index}"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Return nothing: the recipe says everything."""
        return {}

    def __getitem__(self, index: int) -> Conversation:
        one = scene(self.first + index)
        asked = [(question.text, question.answer) for question in one.questions]
        # The first question differs from scene to scene: tests ask one question, the first of a conversation.
        turn = index % max(1, len(asked))
        asked = (asked[turn:] + asked[:turn])[: self.turns]
        if not asked or random.Random(f"caption {self.first + index}").random() < self.captions:
            asked += [("describe the image", caption(one.things))]
        return Conversation(self.name(index), (one.image,), _turns(asked))


class Clips:
    """Generated clips, each with its three questions.

    >>> one = Clips(4)[0]
    >>> one.name, len(one.images), len(one.messages)
    ('clip 0', 4, 6)
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return `clip` and its seed."""
        return f"clip {self.first + index}"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Return nothing: the recipe says everything."""
        return {}

    def __getitem__(self, index: int) -> Conversation:
        one = clip(self.first + index)
        turns = _turns([(question.text, question.answer) for question in one.questions], len(one.frames))
        return Conversation(self.name(index), one.frames, turns)


class Lines:
    """The conversations of a file: one JSON object a line, or one JSON list.

    All lines are read and checked here, and images must exist; they are opened when a row is used.

    Args:
        path: the file.
        images: the folder that image paths start from; the file's own if None.

    Raises:
        FoveateError: the file is missing or empty, or a line is broken; the text gives its number.
    """

    key = "jsonl"
    """What a recipe's `data` calls the file."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        advice = f"data.{self.key} names a file of conversations"
        folder = images or path.parent
        self._rows: list[tuple[int, Conversation]] = []
        facts: list[FileFacts] = []
        text = hashlib.sha256()
        with open_file(path, advice=advice) as file:
            while block := file.read(_BLOCK):
                text.update(block)
        for number, value in _objects(path, advice):
            where = f"{shown_path(path)}, line {number}"
            row = self.read(value)
            if row is None:
                continue
            one = read_conversation(row, where, folder)
            for image in one.images:
                if isinstance(image, Path):
                    facts.append(_image_facts(image, where))
            self._rows.append((number, one))
        self.fingerprint: Mapping[str, str] = {CONVERSATIONS: text.hexdigest(), IMAGES: _digest(facts)}
        if not self._rows:
            raise FoveateError(
                f'{shown_path(path)} holds no conversation; a line is {{"image": "cat.png", "question": "...", '
                '"answer": "..."}'
            )

    def read(self, value: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a line in one of the forms of `read_conversation`; None leaves it out."""
        return value

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the line's number."""
        return f"line {self._rows[index][0]}"

    def __getitem__(self, index: int) -> Conversation:
        return self._rows[index][1]


class LLaVALines(Lines):
    """LLaVA's own list of conversations as it is published, such as llava_v1_5_mix665k.json.

    Its code takes rows that begin with a turn of the model, and leaves that turn out; text of rows without an image may
    have the image's word, which is no image there. What is empty on either side of a question is left out with the
    other side: there is nothing to learn from it.
    """

    key = "llava"

    def read(self, value: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a row without what LLaVA's code doesn't train on."""
        turns = value.get("conversations")
        if not isinstance(turns, list) or any(not isinstance(each, Mapping) for each in turns):
            return value
        if turns and turns[0].get("from") == "gpt":
            turns = turns[1:]
        if value.get("image") is None and value.get("images") is None:
            turns = [{**each, "value": str(each.get("value")).replace("<image>", "")} for each in turns]
        kept: list[Mapping[str, Any]] = []
        for asked, answered in zip(turns[::2], turns[1::2]):
            if str(asked.get("value")).strip() and str(answered.get("value")).strip():
                kept += [asked, answered]
        return {**value, "conversations": kept} if kept else None


def _image_facts(image: Path, where: str) -> FileFacts:
    """Return the facts of an image's file.

    Raises:
        FoveateError: there is none.
    """
    try:
        return facts_of_file(image)
    except MissingFile:
        raise FoveateError(f"{where}: there is no image {shown_path(image)}; images says where paths start") from None
    except FileError as error:
        raise FoveateError(f"{where}: {error}") from None


def _digest(images: Iterable[FileFacts]) -> str:
    """Return a digest of images' sizes and times of change; their names are in the conversations."""
    digest = hashlib.sha256()
    for facts in images:
        digest.update(f"{facts.size} {facts.modified} ".encode())
    return digest.hexdigest()


class HuggingFace:
    """A dataset of the `datasets` library with the columns that lines have: image or images, and messages,
    conversations, or question and answer.

    Args:
        name: the folder that `save_to_disk` wrote, or a dataset's name.
        split: which part of it.
        images: the folder that image paths start from, where images are paths.

    Raises:
        FoveateError: it can't be loaded, has no such columns, or names an image that isn't there.
    """

    def __init__(self, name: str, split: str = "train", images: Path | None = None) -> None:
        hub = re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", name) and kind_of(name) == "missing"
        if not hub and not is_saved_dataset(name):
            raise RecipeError(
                f'data.dataset is "{name}"; it must be the name of a dataset on the Hugging Face hub, or a folder that '
                "save_to_disk wrote (conversations in a file go into data.jsonl)"
            )
        otherwise = 'install foveate with its train extra (pip install ".[train]" in a clone), or use data.jsonl'
        try:
            loaded = load_rows(name, split=split, choose="data.split", otherwise=otherwise)
        except FoveateError as error:
            raise RecipeError(f"data.dataset: {error}") from error
        self._rows, self._name, self._images = loaded, name, images or Path()
        self[0]
        self.fingerprint: Mapping[str, str] = {CONVERSATIONS: loaded._fingerprint, IMAGES: _digest(self._facts())}

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the row's number."""
        return f"row {index}"

    def _facts(self) -> Iterator[FileFacts]:
        """Yield the facts of images that are paths."""
        columns = self._rows.features
        # Pictures are in the dataset itself; reading them here would decode them.
        names = [name for (name,) in _IMAGE_FORMS if _is_text(columns.get(name))]
        names += [name for name in _TURNS if name in columns]
        for index, row in enumerate(self._rows.select_columns(names) if names else ()):
            where = f"{self._name}, row {index}"
            for each in _listed_images(_without_nulls(row), where)[1]:
                if isinstance(each, str) and each.strip():
                    yield _image_facts(self._images / each, where)

    def __getitem__(self, index: int) -> Conversation:
        return read_conversation(self._rows[index], f"{self._name}, row {index}", self._images)


def _is_text(column: Any) -> bool:
    """Whether a dataset's column holds texts or lists of them."""
    (column,) = column if isinstance(column, list) else (column,)
    return getattr(getattr(column, "feature", column), "dtype", None) in ("string", "large_string")


class ExpectedRows:
    """Conversations of which only their number is known; an estimate needs no more."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Return the row's number."""
        return f"row {index}"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Return nothing: the recipe says everything."""
        return {}

    def __getitem__(self, index: int) -> Conversation:
        raise AssertionError("an estimate reads no row of expected data")


def conversations(data: Data) -> Conversations:
    """Return the conversations that a recipe's `data` names.

    Raises:
        FoveateError: it isn't there or is broken.
    """
    images = Path(data.images) if data.images is not None else None
    if data.scenes is not None:
        return Scenes(data.scenes, data.turns, data.first_scene, data.captions)
    if data.clips is not None:
        return Clips(data.clips, data.first_scene)
    if data.jsonl is not None:
        return Lines(Path(data.jsonl), images)
    if data.llava is not None:
        return LLaVALines(Path(data.llava), images)
    assert data.dataset is not None
    return HuggingFace(data.dataset, data.split, images)


def read_conversation(value: Mapping[str, Any], where: str, folder: Path) -> Conversation:
    """Read one conversation from any of the three common forms.

    Args:
        value: `image` or `images` (or none), and either `question` and `answer`; or `messages` with `role` and
            `content`, whose parts may have the images' paths; or LLaVA's `conversations` with `from` and `value`.
            A key that holds None counts as left out.
        where: what errors begin with.
        folder: where paths start.

    Raises:
        FoveateError: it is in none of these forms, or in several; the text says what is missing or too much.
    """
    value = _without_nulls(value)
    key, listed = _listed_images(value, where)
    images: tuple[Any, ...] = tuple(
        folder / each if isinstance(each, str) and each.strip() else each for each in listed
    )
    if any(not isinstance(each, Image.Image | Path) for each in images):
        raise FoveateError(f'{where}: "{key}" holds no path and no picture; write a path, or leave it out')
    form = _one_of(_TURN_FORMS, value, where)
    if form == ("messages",):
        turns = [(each.get("role"), each.get("content")) for each in _list(value["messages"], where, "messages")]
    elif form == ("conversations",):
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        said = _list(value["conversations"], where, "conversations")
        turns = [(roles.get(str(each.get("from")), each.get("from")), each.get("value")) for each in said]
    elif form:
        if not isinstance(value["question"], str):
            raise FoveateError(
                f'{where}: "question" is {quoted(value["question"])}, which is no text; write it in quotes'
            )
        turns = [("user", value["question"]), ("assistant", _answer(value["answer"], where))]
    else:
        raise FoveateError(
            f'{where} needs "question" and "answer", or "messages", or "conversations"; null counts as left out'
        )
    messages = tuple(_message(role, content, where) for role, content in turns)
    if not any(message["role"] == "assistant" for message in messages):
        raise FoveateError(f"{where} has no turn of the assistant, so there is nothing to learn")
    if next(message["role"] for message in messages if message["role"] != "system") == "assistant":
        raise FoveateError(f"{where} begins with a turn of the assistant; a turn of the user comes first")
    for message in messages:
        if message["role"] != "user" and any(part["type"] == "image" for part in message["content"]):
            raise FoveateError(
                f"{where} has an image in a turn of the {message['role']}; images stand in turns of the user"
            )
    placed = sum(part["type"] == "image" for message in messages for part in message["content"])
    if images and not placed:
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is None:
            raise FoveateError(f"{where} has an image and no turn of the user")
        first["content"][:0] = [{"type": "image"}] * len(images)
    elif placed != len(images):
        raise FoveateError(
            f'{where} has {placed} image placeholders and {len(images)} images; paths belong in "images" of the row'
        )
    return Conversation(where, images, messages)


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row gives: data in columns hold null where a row doesn't have one."""
    return {key: each for key, each in row.items() if each is not None}


def _one_of(forms: Sequence[tuple[str, ...]], row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the form whose keys a row has, or nothing.

    Raises:
        FoveateError: it has those of several.
    """
    given = [keys for keys in forms if all(key in row for key in keys)]
    if len(given) > 1:
        both = ", and ".join(" and ".join(f'"{key}"' for key in keys) for keys in given)
        raise FoveateError(f"{where} has {both}, which say the same thing twice; leave all but one out")
    return given[0] if given else ()


def _listed_images(row: Mapping[str, Any], where: str) -> tuple[str, Sequence[Any]]:
    """Return the key that a row's images stand under, and the images as it gives them.

    Raises:
        FoveateError: they stand under several, or only some of the image parts have a path.
    """
    turns = [turn for key in _TURNS for turn in _list(row.get(key, []), where, key)]
    contents = [each for turn in turns for each in (turn.get("content"), turn.get("value")) if isinstance(each, list)]
    parts = [part for each in contents for part in _list(each, where, "content") if part.get("type") == "image"]
    paths = [part["path"] for part in parts if part.get("path") is not None]
    keys = _one_of(_IMAGE_FORMS, row, where)
    if not paths:
        given = row[keys[0]] if keys else ()
        return (keys[0] if keys else "", given if isinstance(given, list | tuple) else (given,))
    if keys:
        raise FoveateError(f'{where} has images in "{keys[0]}" and paths in parts of its turns; leave one out')
    if len(paths) < len(parts):
        raise FoveateError(
            f"{where}: {len(paths)} of the {len(parts)} images in its turns have a path; give each one a path"
        )
    return "path", paths


def _answer(value: Any, where: str) -> str:
    """Return the answer that is trained on; a number is written as its row has it.

    Raises:
        FoveateError: it is no text and no number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        raise FoveateError(f'{where}: "answer" is a list; training takes one text: write the answer to be learned')
    raise FoveateError(f'{where}: "answer" is {quoted(value)}, which is no text; write the answer in quotes')


def _list(value: Any, where: str, key: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or any(not isinstance(each, Mapping) for each in value):
        raise FoveateError(f'{where}: "{key}" is a list of turns')
    return value


def _message(role: Any, content: Any, where: str) -> Message:
    if role not in ("user", "assistant", "system"):
        raise FoveateError(f"{where}: a turn is by user, assistant or system, not {quoted(role)}")
    if isinstance(content, list):
        parts = [_part(each, role, where) for each in _list(content, where, "content")]
        if not any(part["type"] == "image" or part["text"].strip() for part in parts):
            raise FoveateError(f"{where}: a turn of the {role} is empty; write its text, or leave the row out")
        return {"role": role, "content": parts}
    if not isinstance(content, str):
        raise FoveateError(f"{where}: a turn of the {role} holds no text, but {quoted(content)}")
    if not content.strip():
        raise FoveateError(f"{where}: a turn of the {role} is empty; write its text, or leave the row out")
    # LLaVA writes images into the text.
    pieces = content.split("<image>")
    parts = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return {"role": role, "content": parts}


def _part(given: Mapping[str, Any], role: str, where: str) -> Message:
    """Return one part of a turn: an image's place, or text.

    Raises:
        FoveateError: it is something else, or text that is none.
    """
    kind = given.get("type")
    if kind == "image":
        for key in _UNREAD:
            if given.get(key) is not None:
                raise FoveateError(
                    f'{where}: an image in its turns has "{key}", which training doesn\'t read; write a path as '
                    '"path", or put paths or pictures into "images" of the row'
                )
        return {"type": "image"}
    if kind != "text":
        raise FoveateError(f'{where}: a part of a turn has the type "image" or "text", not {quoted(kind)}')
    if not isinstance(given.get("text"), str):
        raise FoveateError(f"{where}: a part of a turn of the {role} holds no text, but {quoted(given.get('text'))}")
    return {"type": "text", "text": given["text"]}


def _turns(asked: Sequence[tuple[str, str]], images: int = 1) -> tuple[Message, ...]:
    out: list[Message] = []
    for number, (question, answer) in enumerate(asked):
        shown = [{"type": "image"}] * (images if number == 0 else 0)
        out.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        out.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return tuple(out)


def _objects(path: Path, advice: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a file with their line numbers, or places in its list."""
    name = shown_path(path)
    with open_file(path, advice=advice) as file:
        is_list = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if is_list:
        rows = enumerate(read_json(path, advice=advice, limit=LIST_LIMIT), start=1)
    else:
        rows = read_json_lines(path, advice=advice)
    for number, value in rows:
        if not isinstance(value, Mapping):
            raise FoveateError(f"{name}, line {number} is not a JSON object")
        yield number, value
