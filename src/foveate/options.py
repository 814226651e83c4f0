"""The options of a method: written, read and checked by their declared types."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

from foveate.errors import FoveateError
from foveate.numbers import Between, check_real, check_whole, read_real, read_whole
from foveate.quotes import quote


def written(method: Any) -> str:
    """Write a method's own part of a step: name, keep, and the options that differ from their defaults."""
    parts: list[str] = [str(method.name), *([str(method.keep)] if method.takes_keep else [])]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name != "keep" and value != field.default:
            parts.append(f"{field.name}={written_value(value)}")
    return ":".join(parts)


def written_value(value: Any) -> str:
    """Write the value of one option."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    # "1e+20" would end the step at its plus.
    return str(value).replace("e+", "e") if isinstance(value, float) else quote(str(value))


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads what a spec writes for an option with values of a class, such as learned weights.

    It is written in the annotation of the option.
    """

    read: Callable[[str], Any]


def read_value(kind: Any, text: str) -> Any:
    """Read the value of an option of a declared type.

    Raises:
        ValueError: the text is no value of this type.
    """
    if typing.get_origin(kind) is typing.Annotated:
        kind, *extras = typing.get_args(kind)
        reader = next((each for each in extras if isinstance(each, Reader)), None)
        if reader is not None:
            return None if text == "none" else reader.read(text)
    if typing.get_origin(kind) is typing.Literal:
        for choice in typing.get_args(kind):
            if written_value(choice) == text:
                return choice
        raise ValueError(text)
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        for member in typing.get_args(kind):
            if member is type(None):
                if text == "none":
                    return None
                continue
            try:
                return read_value(member, text)
            except FoveateError:
                raise
            except ValueError:
                continue
        raise ValueError(text)
    if kind is bool:
        if text not in {"true", "false"}:
            raise ValueError(text)
        return text == "true"
    if kind in _NUMBERS:
        return _NUMBERS[kind](text)
    return kind(text)


_NUMBERS: typing.Final[dict[Any, Any]] = {int: read_whole, float: read_real}


def expected(kind: Any) -> str:
    """Say what an option of a declared type may be, for errors."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(written_value(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return " or ".join(expected(member) for member in typing.get_args(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return words.get(kind, str(kind))


def check_options(method: object) -> None:
    """Check that each option holds a value of its declared type: one of its choices, or a finite number in its range.

    The range of a number is a `Between` in its annotation.

    Raises:
        FoveateError: one doesn't; the text says what it may be.
    """
    for name, kind, choices, members, within in _declared(type(method)):
        value = getattr(method, name)
        if value is None and type(None) in members:
            continue
        if choices and not any(value is each or value == each for each in members):
            raise FoveateError(f"{name} must be {expected(kind)}, not {value!r}")
        if bool in members and not isinstance(value, bool):
            raise FoveateError(f"{name} must be {expected(bool)}, not {value!r}")
        if int in members:
            check_whole(name, value, *within)
        elif float in members:
            check_real(name, value, *within)


@functools.cache
def _declared(method: type) -> list[tuple[str, Any, bool, tuple[Any, ...], list[Between]]]:
    """Return each option's name, its type, whether that lists choices, what it allows, and the range of its number."""
    hints = typing.get_type_hints(method, include_extras=True)
    found: list[tuple[str, Any, bool, tuple[Any, ...], list[Between]]] = []
    for field in dataclasses.fields(method):
        kind = hints[field.name]
        members, within = _members(kind)
        choices = typing.get_origin(kind) is typing.Literal
        found.append((field.name, kind, choices, members, [] if within is None else [within]))
    return found


def _members(kind: Any) -> tuple[tuple[Any, ...], Between | None]:
    """Return what an annotation allows (types, or the values of a Literal), and the range of its number."""
    if typing.get_origin(kind) is typing.Annotated:
        inner, *extras = typing.get_args(kind)
        return _members(inner)[0], next((each for each in extras if isinstance(each, Between)), None)
    if typing.get_origin(kind) in {typing.Union, types.UnionType, typing.Literal}:
        found = [_members(each) if typing.get_origin(each) else ((each,), None) for each in typing.get_args(kind)]
        return tuple(each for members, _ in found for each in members), next(
            (within for _, within in found if within is not None), None
        )
    return (kind,), None
