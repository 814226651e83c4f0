"""Model families: what the engine must know of an architecture, one file each, and all that the author of one needs.

Each module of this folder is found by itself, and so are the modules that installed packages name under the entry point
group `foveate.families`. All are imported when the first model is looked at.

>>> supported()
('llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe')
"""

from __future__ import annotations

from typing import Any

from torch import nn

from foveate.arguments import check_kind
from foveate.discovery import Discovery
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture, Family
from foveate.families.generic import Generic
from foveate.families.registry import FAMILIES, register_family
from foveate.families.vision_shape import VisionShape
from foveate.families.wrappers import find_vlm
from foveate.layout import Layout, Segment, Structural
from foveate.tokens import EncoderAttention, EncoderKeys, Signal
from foveate.transformers_api import check_version

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
    "family_class",
    "families_at",
    "supported",
]

DISCOVERY = Discovery(__name__, "foveate.families")


def supported() -> tuple[str, ...]:
    """List the `model_type` of every family, foveate's own and those of installed packages, sorted by title."""
    return tuple(family.name for family in _families())


def families_at(place: str) -> tuple[str, ...]:
    """List the titles of the families in which steps can act at a place, sorted."""
    return tuple(family.title for family in _families() if place in family.places)


def family_class(config: Any) -> type[Family]:
    """Find the family of a model's configuration by its `model_type`.

    Raises:
        UnsupportedFamily: no family takes models of this type; the text names those that are supported.
    """
    DISCOVERY.load()
    name = getattr(config, "model_type", None)
    family = FAMILIES.get(str(name))
    if family is None:
        raise UnsupportedFamily(f"models of type {name!r} are not supported; {_known()}")
    return family


def vlm_of(model: nn.Module) -> nn.Module:
    """Find the vision-language model inside a wrapper; return the model itself if there is none.

    A wrapper is any module that has the model inside: DataParallel, DistributedDataParallel, FSDP, a Lightning module,
    `peft.PeftModel`, a compiled model.

    Raises:
        FoveateError: it is no module, or several models are inside.
    """
    check_kind("model", model, nn.Module, "a model such as foveate.load returns")
    DISCOVERY.load()
    return find_vlm(model, FAMILIES)


def family_of(model: nn.Module) -> Family:
    """Find the family of a model, bound to it.

    Falls back to `Generic`, with a warning, if no other family takes the model. A family may refuse a model of its
    type, such as LLaVA with an unusual encoder, and `Generic` may still take it.

    Args:
        model: a model, or a wrapper with one inside; see `vlm_of`.

    Raises:
        UnsupportedFamily: no family takes this model, and `Generic` doesn't either.
        FoveateError: the installed transformers is too old, or several models are inside the wrapper.
    """
    check_version()
    model = vlm_of(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    family = FAMILIES.get(str(kind))
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


def __getattr__(name: str) -> Any:
    """Find the class of a family in this folder, such as `foveate.families.Llava`."""
    if not name.startswith("_"):
        for family in _families():
            if family.__name__ == name and family.__module__.startswith(f"{__name__}."):
                return family
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _families() -> list[type[Family]]:
    DISCOVERY.load()
    return sorted(FAMILIES.values(), key=lambda family: family.title.casefold())


def _known() -> str:
    return "supported are " + ", ".join(f"{family.name} ({family.title})" for family in _families())
