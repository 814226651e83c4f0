"""Read numbers from a model's configuration, with errors that name the missing field."""

from __future__ import annotations

from typing import Any

from foveate.errors import FoveateError


def read_field(config: Any, *names: str) -> Any:
    """Return the first of these fields that a configuration has and that is not None.

    Raises:
        FoveateError: the configuration has none of them.
    """
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    raise FoveateError(f"the configuration of {kind_of(config)} has no {' or '.join(names)}, which foveate needs")


def read_number(config: Any, *names: str) -> int:
    """Return the first of these fields as a whole number of 1 or more.

    >>> from types import SimpleNamespace
    >>> read_number(SimpleNamespace(hidden_size=64), "n_embd", "hidden_size")
    64

    Raises:
        FoveateError: the configuration has none of them, or the value is no such number.
    """
    value = read_field(config, *names)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        name = next(name for name in names if getattr(config, name, None) is not None)
        raise FoveateError(f"{name} of {kind_of(config)} is {value!r}; it must be a whole number of 1 or more")
    return value


def kind_of(config: Any) -> str:
    """Return the `model_type` of a configuration, or else the name of its class."""
    return str(getattr(config, "model_type", None) or type(config).__name__)
