"""Read files: text in UTF-8, JSON, JSON lines, YAML, TOML and safetensors; what is broken is named with its line."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

from foveate.errors import shown
from foveate.files.paths import DamagedFile, FileError, MissingFile, checked_path, shown_path, why

if TYPE_CHECKING:
    from torch import Tensor

LIMIT: Final = 64 * 2**20
"""The most bytes of a text that is read as a whole, and of one line of a longer one."""
YAML_LIMIT: Final = 2**20
"""The most bytes of a YAML file."""
LIST_LIMIT: Final = 8 * 2**30
"""The most bytes of a JSON file that holds all rows of a data set."""

_DEPTH: Final = 100
"""The most lists and mappings that may stand inside each other."""
_NODES: Final = 100_000
"""The most values that a YAML file may stand for, with all its aliases written out."""
_DIGITS: Final = 308
"""The most digits of a whole number: a float holds no larger one."""
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_YAML_WHOLE: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
"""Whole numbers that YAML reads as people do; `012` is ten, `1:30` ninety and `1_000` a thousand to it."""
_YAML_REAL: Final = re.compile(r"[^_:]*")
"""Other numbers that YAML reads as people do."""


@contextmanager
def open_file(path: str | Path, what: str = "file", advice: str = "check the path") -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe, a device or a socket is refused, which could block or never end.

    Args:
        path: of the file.
        what: what an error calls it, such as "recipe".
        advice: what to do if it is missing.

    Raises:
        MissingFile: there is none.
        FileError: it is no regular file, or the system refuses to open or read it.
    """
    checked, name = checked_path(path), shown_path(path)
    try:
        mode = checked.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{name} is a folder; name a file")
        if not stat.S_ISREG(mode):
            raise FileError(f"{name} is a pipe or a device; save its content to a file, and name that")
        # A pipe that takes the file's place meanwhile must not block.
        file = os.fdopen(
            os.open(checked, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
        )
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"there is no {what} {name}; {advice}") from None
    except OSError as error:
        raise FileError(f"{name} can't be read {why(error)}") from None
    with file:
        try:
            yield file
        except OSError as error:
            raise FileError(f"{name} can't be read {why(error)}") from None


def read_bytes(path: str | Path, what: str = "file", advice: str = "check the path", limit: int = LIMIT) -> bytes:
    """Read a file as a whole.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.
        limit: the most bytes that it may have.

    Raises:
        MissingFile: there is none.
        FileError: it can't be read, or is larger.
    """
    with open_file(path, what, advice) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise FileError(f"{shown_path(path)} is too large for a {what}: {size:,} bytes, and the limit is {limit:,}")
    return content


def read_text(path: str | Path, what: str = "file", advice: str = "check the path", limit: int = LIMIT) -> str:
    """Read text in UTF-8; a byte order mark is left out, and "\\r\\n" becomes "\\n".

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.
        limit: the most bytes that it may have.

    Raises:
        MissingFile: there is none.
        DamagedFile: it isn't text in UTF-8; the text names the line.
        FileError: it can't be read, or is larger.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "notes.txt").write_bytes(b"\\xef\\xbb\\xbfone\\r\\ntwo")
    ...     read_text(f"{folder}/notes.txt")
    'one\\ntwo'
    """
    content = read_bytes(path, what, advice, limit)
    return _decoded(content, path).replace("\r\n", "\n")


def _decoded(content: bytes, path: str | Path, first: int = 1) -> str:
    """Decode UTF-8 that begins in the line `first` of a file."""
    name = shown_path(path)
    if first == 1 and content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DamagedFile(f"{name} is text in UTF-16; save it in UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + content.count(b"\n", 0, error.start)
        byte = content[error.start]
        raise DamagedFile(f"{name}, line {line} is not text in UTF-8 (byte 0x{byte:02x}); save it in UTF-8") from None
    if "\0" in text:
        line = first + text.count("\n", 0, text.index("\0"))
        raise DamagedFile(f"{name}, line {line} holds a NUL character, as text in UTF-16 does; save it in UTF-8")
    return text.removeprefix("\ufeff")


def read_lines(path: str | Path, what: str = "file", advice: str = "check the path") -> Iterator[tuple[int, str]]:
    """Yield the lines of a text in UTF-8 with their numbers, from 1. Only "\\n" and "\\r\\n" end a line.

    Args:
        path: of the file. It is read line by line, so it may be larger than memory.
        what: what an error calls it.
        advice: what to do if it is missing.

    Raises:
        MissingFile: there is none.
        DamagedFile: a line isn't text in UTF-8, or is longer than `LIMIT`.
        FileError: it can't be read.
    """
    with open_file(path, what, advice) as file:
        number = 0
        while content := file.readline(LIMIT + 1):
            number += 1
            if len(content) > LIMIT:
                raise DamagedFile(f"{shown_path(path)}, line {number} is longer than {LIMIT:,} bytes")
            yield number, _decoded(content, path, number).removesuffix("\n").removesuffix("\r")


# JSON


def parse_json(text: str, where: str, strict: bool = True) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON.
        where: what errors begin with, such as the path and the line.
        strict: refuse what foveate never takes from users: keys that occur twice, NaN and infinities, numbers beyond
            what a float holds, and halves of surrogate pairs, which no UTF-8 can hold.

    Raises:
        DamagedFile: it isn't JSON, or is nested over 100 deep.

    >>> parse_json('{"steps": 1}', "recipe.json")
    {'steps': 1}
    >>> parse_json('{"steps": 1, "steps": 2}', "recipe.json")
    Traceback (most recent call last):
    foveate.files.paths.DamagedFile: recipe.json holds the key "steps" twice; keep one of them
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            keys = [key for key, _ in found]
            double = next(key for key in keys if keys.count(key) > 1)
            raise DamagedFile(f'{where} holds the key "{shown_path(double)}" twice; keep one of them')
        return made

    def constant(name: str) -> NoReturn:
        raise DamagedFile(f"{where} holds {name}, which is no number; write a number, or leave it out")

    def whole(digits: str) -> int:
        if len(digits) > _DIGITS:
            raise DamagedFile(f"{where} holds a number of {len(digits):,} digits; write one of at most {_DIGITS}")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise DamagedFile(f"{where} holds the number {shown_path(digits)}, which is larger than any float")
        return value

    hooks: dict[str, Any] = {"parse_int": whole}
    if strict:
        hooks |= {"object_pairs_hook": pairs, "parse_constant": constant, "parse_float": real}
    try:
        value = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise DamagedFile(f"{where} is not JSON ({error.msg} at {place}character {error.colno})") from None
    except RecursionError:
        raise _too_deep(where) from None
    if text.count("[") + text.count("{") > _DEPTH:
        _check_depth(value, where)
    if strict and _SURROGATE.search(text):
        _check_encodable(value, where)
    return value


def _too_deep(where: str) -> DamagedFile:
    return DamagedFile(f"{where} holds lists or mappings that are nested over {_DEPTH} deep; write it flatter")


def _check_depth(value: Any, where: str) -> None:
    inside = [value]
    for _ in range(_DEPTH):
        inside = [
            item
            for each in inside
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not inside:
            return
    raise _too_deep(where)


def _check_encodable(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise DamagedFile(f"{where} holds {code}, half of a surrogate pair, which is no character") from None


def read_json(
    path: str | Path,
    what: str = "file",
    advice: str = "check the path",
    limit: int = LIMIT,
    strict: bool = True,
) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.
        limit: the most bytes that it may have.
        strict: as for `parse_json`.

    Raises:
        MissingFile: there is none.
        DamagedFile: it isn't JSON in UTF-8.
        FileError: it can't be read, or is larger.
    """
    return parse_json(read_text(path, what, advice, limit), shown_path(path), strict)


def read_json_object(
    path: str | Path,
    what: str = "file",
    advice: str = "check the path",
    limit: int = LIMIT,
    strict: bool = True,
) -> dict[str, Any]:
    """Read a JSON file that holds an object; see `read_json`.

    Raises:
        MissingFile: there is none.
        DamagedFile: it isn't JSON in UTF-8, or holds something else.
        FileError: it can't be read, or is larger.
    """
    found = read_json(path, what, advice, limit, strict)
    if not isinstance(found, dict):
        raise DamagedFile(f"{shown_path(path)} holds no JSON object, but {shown(found)}")
    return found


def read_json_lines(
    path: str | Path, what: str = "file", advice: str = "check the path", strict: bool = True
) -> Iterator[tuple[int, Any]]:
    """Yield the values of a file with one JSON value per line, with the numbers of the lines; empty lines are skipped.

    Args:
        path: of the file. It is read line by line, so it may be larger than memory.
        what: what an error calls it.
        advice: what to do if it is missing.
        strict: as for `parse_json`.

    Raises:
        MissingFile: there is none.
        DamagedFile: a line isn't JSON in UTF-8; the text names it.
        FileError: it can't be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "rows.jsonl").write_text('{"question": "one\\u2028two"}\\n\\n[]', encoding="utf-8")
    ...     list(read_json_lines(f"{folder}/rows.jsonl"))
    [(1, {'question': 'one\\u2028two'}), (3, [])]
    """
    for number, line in read_lines(path, what, advice):
        text = line.removeprefix("\ufeff")
        if text.strip(" \t\r"):
            yield number, parse_json(text, f"{shown_path(path)}, line {number}", strict)


# YAML and TOML


def read_yaml(path: str | Path, what: str = "file", advice: str = "check the path") -> Any:
    """Read a YAML file that holds plain data: no tags, no keys that occur twice; anchors may be used sparingly.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.

    Returns:
        Its value; None if it is empty.

    Raises:
        MissingFile: there is none.
        DamagedFile: it isn't YAML, or not plain data.
        FileError: it can't be read, or is larger than `YAML_LIMIT`.
    """
    import yaml

    text, name = read_text(path, what, advice, YAML_LIMIT), shown_path(path)
    try:
        loader = _plain_loader(name)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, name)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise DamagedFile(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _too_deep(name) from None
    # Of numbers and dates that look right: YAML's own rules find them, and Python refuses them.
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, FileError):
            raise
        raise DamagedFile(f"{name} holds a value that can't be read ({why(error)[1:-1]})") from None
    _check_encodable(value, name)
    return value


def _plain_loader(name: str) -> Any:
    """Return a loader for one file, which errors call by its name."""
    import yaml

    class Plain(yaml.SafeLoader):
        """Refuses tags, keys that occur twice, and numbers that YAML reads as others than people do."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the tag {tag} is not taken", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                word = self.construct_object(key, deep=True)
                if not isinstance(word, str | int | float | None):
                    raise yaml.constructor.ConstructorError(None, None, "a key is no name", key.start_mark)
                if word in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{word}" occurs twice', key.start_mark
                    )
                seen.add(word)
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: Any) -> int:
            self._check_number(node, _YAML_WHOLE)
            return super().construct_yaml_int(node)

        def construct_yaml_float(self, node: Any) -> float:
            self._check_number(node, _YAML_REAL)
            return super().construct_yaml_float(node)

        def _check_number(self, node: Any, plain: re.Pattern[str]) -> None:
            place = f"{name}, line {node.start_mark.line + 1} holds"
            if len(node.value) > _DIGITS:
                raise DamagedFile(f"{place} a number of {len(node.value):,} digits; write one of at most {_DIGITS}")
            if not plain.fullmatch(node.value):
                raise DamagedFile(
                    f"{place} {node.value}, which YAML reads as another number; write the number in plain digits, or "
                    "the text in quotes"
                )

    for kind in ("int", "float"):
        Plain.add_constructor(f"tag:yaml.org,2002:{kind}", getattr(Plain, f"construct_yaml_{kind}"))
    return Plain


def _check_nodes(root: Any, name: str) -> None:
    """Check how many values a YAML file stands for, and how deep: a few lines of aliases can stand for billions."""
    known: dict[int, tuple[int, int]] = {}
    parents: set[int] = set()

    def measure(node: Any) -> tuple[int, int]:
        """Return how many values a node stands for, and how deep they are nested."""
        key = id(node)
        if key in parents:
            raise DamagedFile(f"{name} holds a value that contains itself; write it out")
        if key not in known and isinstance(node.value, list):
            parents.add(key)
            parts = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
            sizes, depths = zip(*map(measure, parts)) if parts else ((), ())
            parents.remove(key)
            known[key] = 1 + sum(sizes), 1 + max(depths, default=0)
        return known.get(key, (1, 0))

    size, depth = measure(root)
    if depth > _DEPTH:
        raise _too_deep(name)
    if size > _NODES:
        raise DamagedFile(f"{name} stands for over {_NODES:,} values with its aliases (*name) written out; use fewer")


def read_toml(path: str | Path, what: str = "file", advice: str = "check the path") -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.

    Raises:
        MissingFile: there is none.
        DamagedFile: it isn't TOML in UTF-8.
        FileError: it can't be read, or is larger than `YAML_LIMIT`.
    """
    import tomllib

    text, name = read_text(path, what, advice, YAML_LIMIT), shown_path(path)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(name) from None
    # Besides its own errors, tomllib raises those of int and datetime.
    except ValueError as error:
        raise DamagedFile(f"{name} is not TOML ({error})") from None
    _check_depth(tables, name)
    return tables


# Tensors


def read_tensors(path: str | Path, what: str = "file", advice: str = "check the path") -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no safetensors file, or is cut off.
        FileError: it can't be read.
    """
    with open_tensors(path, what, advice) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_tensors(path: str | Path, what: str = "file", advice: str = "check the path") -> Iterator[Any]:
    """Open a safetensors file; `get_tensor`, `get_slice` and `metadata` read parts of it.

    Args:
        path: of the file.
        what: what an error calls it.
        advice: what to do if it is missing.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no safetensors file, or is cut off.
        FileError: it can't be read.
    """
    from safetensors import SafetensorError

    with tensor_file(path, what, advice) as file:
        try:
            yield file
        except SafetensorError as error:
            raise DamagedFile(f"{shown_path(path)} can't be read {why(error)}") from None


def tensor_file(path: str | Path, what: str = "file", advice: str = "check the path") -> Any:
    """Return a safetensors file that stays open as long as the result exists; `open_tensors` closes it.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no safetensors file, or is cut off.
        FileError: it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    # The library would block at a pipe.
    with open_file(path, what, advice):
        pass
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise DamagedFile(f"{shown_path(path)} is no whole safetensors file {why(error)}") from None
    # torch raises RuntimeError when it can't open a file; a process may not have addresses for all of a large one.
    except (OSError, RuntimeError, MemoryError) as error:
        raise FileError(f"{shown_path(path)} can't be read {why(error)}") from None


def check_torch_file(path: str | Path, what: str = "file", advice: str = "check the path") -> None:
    """Check that a file of `torch.save` is whole, without reading what is in it.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no such file, or is cut off.
        FileError: it can't be read.
    """
    import zipfile

    with open_file(path, what, advice) as file:
        try:
            zipfile.ZipFile(file).close()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DamagedFile(f"{shown_path(path)} is no whole file of torch {why(error)}") from None
