"""Errors for people: what was wrong, what was expected, what to do."""

from __future__ import annotations


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
