"""The names of families, and which of them takes a model."""

from __future__ import annotations

from typing import TypeVar

from foveate.errors import FoveateError
from foveate.families.family import Family

F = TypeVar("F", bound=type[Family])

FAMILIES: dict[str, type[Family]] = {}
"""The class of each registered family, by its name. Only what is imported already; see `foveate.families`."""


def family_for(kind: str | None, encoder: str | None) -> type[Family] | None:
    """Return the family of models of a type with an encoder of a type; None if there is none.

    If no family of the type takes the encoder, it is the one that has the type's name; it says what it takes.
    """
    ours = [family for family in FAMILIES.values() if family.kind() == kind]
    fitting = [family for family in ours if not family.encoders or encoder in family.encoders]
    named = [family for family in ours if family.name == kind]
    return next(iter(fitting or named or ours), None)


def register_family(family: F) -> F:
    """Make a family known by its `name`; a decorator of its class.

    Raises:
        FoveateError: another family has the name.
    """
    other = FAMILIES.get(family.name)
    if other is not None and (other.__module__, other.__qualname__) != (family.__module__, family.__qualname__):
        raise FoveateError(f"two families have the name {family.name!r}: {other.__module__}, {family.__module__}")
    FAMILIES[family.name] = family
    return family
