"""Errors for people: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class FoveateError(ValueError):
    """Anything that the person who called can put right; its text says how."""


class SpecError(FoveateError):
    """A spec that can't be read; its text shows the place."""


class KeepError(FoveateError):
    """A keep that is no number of tokens and no share of them, or more than there is."""


class PlanError(FoveateError):
    """A plan that doesn't fit the tokens it is given."""


class SignalError(FoveateError):
    """A method asked for a signal that nobody captured."""


class UnsupportedFamily(FoveateError):
    """A model that no family takes; its text names the ones that are supported."""


class FoveateWarning(UserWarning):
    """Something that works, and that the person who called should know."""


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is none of those that are known, for an error's text, and which one may be meant.

    >>> unknown("method is called", "clustre", ("cluster", "pool"))
    'no method is called "clustre"; did you mean "cluster"?'
    """
    nearest = difflib.get_close_matches(name, known, n=1)
    meant = f'did you mean "{nearest[0]}"?' if nearest else f"there are {', '.join(known)}"
    return f'no {what} "{name}"; {meant}'


def shown(value: object) -> str:
    """Write a value that was refused for an error's text: short, with its type.

    >>> shown(64), shown(FoveateError)
    ('64 (int)', 'the class FoveateError')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
