"""Which family takes a model: ours, those of installed packages, or for want of one the generic family."""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from typing import Any, TypeVar

from torch import nn

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.family import Family
from foveate.families.generic import Generic
from foveate.transformers_api import check_version

_families: dict[str, type[Family]] = {}
_loaded = False
_loading = threading.RLock()
F = TypeVar("F", bound=type[Family])


def register_family(family: F) -> F:
    """Make a family known by its `name`; a decorator of its class.

    Raises:
        FoveateError: another family has the name.
    """
    held = _families.get(family.name)
    if held is not None and (held.__module__, held.__qualname__) != (family.__module__, family.__qualname__):
        raise FoveateError(f"two families want models of type {family.name!r}: {held.__module__}, {family.__module__}")
    _families[family.name] = family
    return family


def supported() -> tuple[str, ...]:
    """The `model_type` of every family, ours and those of installed packages (entry points, "foveate.families")."""
    _load()
    return tuple(_families)


def families_at(place: str) -> tuple[str, ...]:
    """The titles of the families in which steps can act at a place."""
    _load()
    return tuple(family.title for family in _families.values() if place in family.places)


def family_class(config: Any) -> type[Family]:
    """The family of a model's configuration.

    Raises:
        UnsupportedFamily: no family takes models of this type by name.
    """
    _load()
    name = getattr(config, "model_type", None)
    family = _families.get(str(name))
    if family is None:
        raise UnsupportedFamily(f"models of type {name!r} are not supported; {_known()}")
    return family


def family_of(model: nn.Module) -> Family:
    """The family of a model, bound to it; the generic one, with a warning, where no other takes it.

    A family may refuse a model of its type, such as LLaVA with an unusual encoder; the generic one may still do.

    Raises:
        UnsupportedFamily: no family takes this model, not even the generic one.
        FoveateError: the installed transformers is too old.
    """
    check_version()
    _load()
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    family = _families.get(str(kind))
    why = f"no family describes models of type {kind!r}"
    if family is not None:
        try:
            return family(model)
        except UnsupportedFamily as error:
            why = str(error)
    try:
        return Generic(model, why)
    except UnsupportedFamily as error:
        raise UnsupportedFamily(f"{why}, and without one nothing can be done: {error}; {_known()}") from None


def _known() -> str:
    return "supported are " + ", ".join(f"{each.name} ({each.title})" for each in _families.values())


def _load() -> None:
    global _loaded
    # Another thread waits until all are there; a package that asks for families while it is loaded here goes on.
    with _loading:
        if not _loaded:
            _loaded = True
            importlib.import_module("foveate.families")
            for entry in importlib.metadata.entry_points(group="foveate.families"):
                entry.load()
