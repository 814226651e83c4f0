"""Read what stands in lmms-eval's --model_args."""

from __future__ import annotations

from foveate.errors import FoveateError, quoted
from foveate.spec import Spec, parse

__all__ = ["read_count", "read_spec", "read_switch"]


def read_spec(text: str) -> Spec | None:
    """Return a spec, or None for `dense`; quotes around it, which keep its commas together, are taken off.

    Raises:
        SpecError: it is none.

    >>> str(read_spec('"pyramiddrop:0.5@8,16"')), read_spec("dense")
    ('pyramiddrop:0.5@8,16', None)
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if text.lower() in ("dense", "none", ""):
        return None
    return parse(text)


def read_switch(name: str, value: object) -> bool:
    """Return whether a switch is on.

    Raises:
        FoveateError: it is neither true nor false.

    >>> read_switch("loyalty", "True"), read_switch("loyalty", False)
    (True, False)
    """
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if found is None:
        raise FoveateError(f"{name} is {quoted(value)}; it must be true or false")
    return found


def read_count(name: str, value: object) -> int | None:
    """Return a whole number of at least 1, or None if there is none.

    Raises:
        FoveateError: it is something else.

    >>> read_count("voco_tokens", "8"), read_count("voco_tokens", None)
    (8, None)
    """
    if value is None:
        return None
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise FoveateError(f"{name} is {quoted(value)}; it must be a whole number of at least 1")
    return int(text)
