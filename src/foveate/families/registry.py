"""The names of families: each class that is registered, by the `model_type` of its models."""

from __future__ import annotations

from typing import TypeVar

from foveate.errors import FoveateError
from foveate.families.family import Family

F = TypeVar("F", bound=type[Family])

FAMILIES: dict[str, type[Family]] = {}
"""The class of each registered family. Only what is imported already; see `foveate.families`."""


def register_family(family: F) -> F:
    """Make a family known by its `name`, the `model_type` of its models; a decorator of its class.

    Raises:
        FoveateError: another family has the name.
    """
    other = FAMILIES.get(family.name)
    if other is not None and (other.__module__, other.__qualname__) != (family.__module__, family.__qualname__):
        raise FoveateError(f"two families want models of type {family.name!r}: {other.__module__}, {family.__module__}")
    FAMILIES[family.name] = family
    return family
