"""Errors that callers can fix: each text says what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FoveateError(ValueError):
    """An error that the caller can fix; its text says how."""


class SpecError(FoveateError):
    """Raised for a spec that can't be read; the text marks the place."""


class KeepError(FoveateError):
    """Raised for an invalid keep, or one larger than the number of tokens."""


class PlanError(FoveateError):
    """Raised for a plan that doesn't fit its tokens."""


class SignalError(FoveateError):
    """Raised when a method asks for a signal that was not captured."""


class UnsupportedFamily(FoveateError):
    """Raised for a model of no supported family; the text names the families."""


class FoveateWarning(UserWarning):
    """Warns of something that works, but that the caller should know."""


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return an error text for an unknown name that suggests the nearest known one.

    >>> unknown("method is called", "clustre", ("cluster", "pool"))
    'no method is called "clustre"; did you mean "cluster"?'
    """
    return f'no {what} "{shortened(name)}"; {nearest(name, known)}'


def nearest(name: str, known: Iterable[str], also: str = "") -> str:
    """Write the end of an error about an unknown name: what was meant, or what there is.

    >>> nearest("stepps", ["steps", "lr"]), nearest("xyz", ["steps", "lr"], ", and numbers")
    ('did you mean "steps"?', 'there are steps, lr, and numbers')
    """
    names = list(known)
    near = difflib.get_close_matches(name[:60], names, n=1)
    return f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names)}{also}"


def shortened(text: str, length: int = 60) -> str:
    """Return a text of at most `length` characters: without its middle, if it is longer.

    >>> shortened("a" * 50 + "b" * 50, 20)
    'aaaaaaaa ... bbbbbbb'
    """
    if len(text) <= length:
        return text
    tail = (length - 5) // 2
    return f"{text[: length - 5 - tail]} ... {text[len(text) - tail :]}"


def shown(value: object) -> str:
    """Return a refused value for an error text: short, with its type.

    >>> shown(64), shown(FoveateError)
    ('64 (int)', 'the class FoveateError')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{quoted(value)} ({type(value).__name__})"


def quoted(value: object) -> str:
    """Return a refused value for an error text, short.

    >>> quoted("ten"), quoted(10**5000)
    ("'ten'", 'a number of over 4,000 digits')
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no longer numbers.
        text = "a number of over 4,000 digits"
    text = " ".join(line.strip() for line in text.splitlines())
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: Exception) -> str:
    """Return the first line of another error's text, without a full stop, to be quoted in one of foveate's.

    If it ends with a colon, the next line belongs to it.

    >>> first_line(ValueError("too long.\\nTry truncation=True.")), first_line(KeyError())
    ('too long', 'KeyError')
    >>> first_line(ValueError("field 'depth':\\n    expected int"))
    "field 'depth': expected int"
    """
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text.rstrip(".")
