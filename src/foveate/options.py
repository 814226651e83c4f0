"""The options of a method: written, read and checked by their declared types."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from foveate.errors import FoveateError


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
    return str(value).replace("e+", "e") if isinstance(value, float) else str(value)


def read_value(kind: Any, text: str) -> Any:
    """Read the value of an option of a declared type.

    Raises:
        ValueError: the text is no value of this type.
    """
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
    # Learned weights: their class reads what specs call them by.
    return kind.read(text) if hasattr(kind, "read") else kind(text)


def expected(kind: Any) -> str:
    """Say what an option of a declared type may be, for errors."""
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(written_value(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return " or ".join(expected(member) for member in typing.get_args(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return words.get(kind, str(kind))


def check_choices(method: object) -> None:
    """Check that each option with a fixed set of choices holds one of them.

    Raises:
        FoveateError: one doesn't; the text names the choices.
    """
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(typing.cast("Any", method)):
        kind, value = hints[field.name], getattr(method, field.name)
        if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
            raise FoveateError(f"{field.name} must be {expected(kind)}, not {value!r}")
