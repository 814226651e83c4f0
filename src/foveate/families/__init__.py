"""Model families: what the engine must know of an architecture, one file each, and all that the author of one needs.

Each module of this folder is found by itself, and so are the modules that installed packages name under the entry point
group `foveate.families`. All are imported when the first model is looked at.

>>> "llava" in supported()
True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from foveate.arguments import check_kind
from foveate.discovery import Discovery
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture, Family
from foveate.families.generic import Generic
from foveate.families.generic_mrope import generic_family
from foveate.families.registry import FAMILIES, family_for, register_family
from foveate.families.vision_shape import VisionShape
from foveate.families.wrappers import check_decoder, cores_of, find_vlm
from foveate.layout import Layout, Segment, Structural
from foveate.tokens import EncoderAttention, EncoderKeys, Signal
from foveate.transformers_api import check_since, check_version

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "register_family",
    "Family",
    "Generic",
    "Capture",
    "Layout",
    "Segment",
    "Structural",
    "Signal",
    "EncoderAttention",
    "EncoderKeys",
    "VisionShape",
    "read_field",
    "read_number",
    "FoveateError",
    "UnsupportedFamily",
    "family_of",
    "vlm_of",
    "vlm_config",
    "family_class",
    "families",
    "model_types",
    "families_at",
    "supported",
]

DISCOVERY = Discovery(__name__, "foveate.families")


def supported() -> tuple[str, ...]:
    """List the name of every family, foveate's own and those of installed packages, sorted by title."""
    return tuple(family.name for family in families())


def model_types() -> frozenset[str]:
    """Return the `model_type` of all models that a family takes."""
    return frozenset(family.kind() for family in families())


def families_at(place: str) -> tuple[str, ...]:
    """List the titles of the families in which steps can act at a place, sorted."""
    return tuple(family.title for family in families() if place in family.places)


def family_class(config: Any) -> type[Family]:
    """Find the family of a configuration by its `model_type`, and by that of its encoder where families share a type.

    Raises:
        UnsupportedFamily: no family takes models of this type.
    """
    family = _family_for(config)
    if family is None:
        raise UnsupportedFamily(f"models of type {getattr(config, 'model_type', None)!r} are not supported; {_known()}")
    return family


def _family_for(config: Any) -> type[Family] | None:
    DISCOVERY.load()
    encoder = getattr(getattr(config, "vision_config", None), "model_type", None)
    return family_for(getattr(config, "model_type", None), encoder)


def vlm_config(config: Any) -> Any:
    """Return the configuration of the vision-language model inside a larger one; without one, `config` itself.

    >>> inner = {"model_type": "qwen2_5_omni_thinker"}
    >>> vlm_config({"model_type": "qwen2_5_omni", "thinker_config": inner}) is inner
    True

    Args:
        config: an object of transformers, or a mapping as config.json holds it.
    """

    def kind(part: Any) -> Any:
        return part.get("model_type") if isinstance(part, Mapping) else getattr(part, "model_type", None)

    types = {family.kind() for family in families() if kind(config) in family.inside}
    parts = config.values() if isinstance(config, Mapping) else vars(config).values() if types else ()
    return next((part for part in parts if isinstance(kind(part), str) and kind(part) in types), config)


def vlm_of(model: nn.Module) -> nn.Module:
    """Find the vision-language model inside a wrapper; return the model itself if there is none.

    A wrapper is any module that has the model inside: DataParallel, DistributedDataParallel, FSDP, a Lightning module,
    `peft.PeftModel`, a compiled model.

    Raises:
        FoveateError: it is no module, or several models are inside.
    """
    check_kind("model", model, torch.nn.Module, "a model such as foveate.load returns")
    return find_vlm(model, model_types())


def family_of(model: nn.Module) -> Family:
    """Find the family of a model, bound to it.

    Falls back to `Generic`, with a warning, if no other family takes the model. A family may refuse a model of its
    type, such as LLaVA with an unusual encoder, and `Generic` may still take it.

    Args:
        model: a model, or a wrapper with one inside; see `vlm_of`.

    Raises:
        UnsupportedFamily: no family takes this model, and `Generic` doesn't either; or its family needs a later
            version of transformers.
        FoveateError: the installed transformers is too old, or several models are inside the wrapper.
    """
    check_version()
    whole, model = model, vlm_of(model)
    config = getattr(model, "config", None)
    family = _family_for(config)
    if family is not None and family.has_one_decoder:
        try:
            for core in cores_of(model):
                check_decoder(whole, core)
        except UnsupportedFamily as error:
            kind = getattr(getattr(whole, "config", None), "model_type", None)
            raise UnsupportedFamily(f"models of type {kind!r} are not supported: {error}; {_known()}") from None
    why = f"no family describes models of type {getattr(config, 'model_type', None)!r}"
    if family is not None:
        check_since(family.title, family.since)
        try:
            return family(model)
        except UnsupportedFamily as error:
            why = str(error)
    try:
        return generic_family(model, why)
    except UnsupportedFamily as error:
        raise UnsupportedFamily(f"{why}, and without a family nothing can be done: {error}; {_known()}") from None


def __getattr__(name: str) -> Any:
    """Find the class of a family in this folder, such as `foveate.families.Llava`."""
    if not name.startswith("_"):
        for family in families():
            if family.__name__ == name and family.__module__.startswith(f"{__name__}."):
                return family
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def families() -> list[type[Family]]:
    """List the class of every family, sorted by title."""
    DISCOVERY.load()
    return sorted(FAMILIES.values(), key=lambda family: family.title.casefold())


def _known() -> str:
    return f"{len(families())} families are supported  (foveate families lists them)"
