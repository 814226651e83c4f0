"""Check the types of arguments of public functions, with errors that say what is expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foveate.errors import FoveateError, shown

__all__ = ["check_kind", "listed"]


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Check that an argument is of a type.

    Args:
        name: of the argument, for the error.
        value: what was given.
        kind: the type, or several.
        expected: what the error says it must be.

    Raises:
        FoveateError: it is of another type.

    >>> check_kind("memory", None, str, "a text")
    Traceback (most recent call last):
    foveate.errors.FoveateError: memory must be a text, not None (NoneType)
    """
    if not isinstance(value, kind):
        raise FoveateError(f"{name} must be {expected}, not {shown(value)}")


def listed(name: str, values: Any, expected: str) -> list[Any]:
    """Return several values as a list.

    Args:
        name: of the argument, for the error.
        values: a list, a tuple, or anything else with an order; no text and no mapping.
        expected: what the error says they must be.

    Raises:
        FoveateError: they are something else.
    """
    if isinstance(values, str | bytes | dict | set) or not isinstance(values, Iterable):
        raise FoveateError(f"{name} must be {expected}, not {shown(values)}")
    try:
        return list(values)
    except TypeError:  # A tensor of one number says that it can be iterated.
        raise FoveateError(f"{name} must be {expected}, not {shown(values)}") from None
