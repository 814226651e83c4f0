"""Model families: what the engine must know of an architecture, one file each.

>>> supported()
('llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe')
"""

from __future__ import annotations

from typing import Any

from torch import nn

from foveate.errors import UnsupportedFamily
from foveate.models.family import Capture, Family
from foveate.models.llava import Llava
from foveate.models.llava_next import LlavaNext
from foveate.models.qwen2_5_vl import Qwen25VL
from foveate.models.qwen2_vl import Qwen2VL
from foveate.models.qwen3_vl import Qwen3VL
from foveate.models.qwen3_vl_moe import Qwen3VLMoe

__all__ = [
    "Capture",
    "Family",
    "Llava",
    "LlavaNext",
    "Qwen2VL",
    "Qwen25VL",
    "Qwen3VL",
    "Qwen3VLMoe",
    "family_of",
    "family_class",
    "supported",
]

_FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Llava, LlavaNext, Qwen2VL, Qwen25VL, Qwen3VL, Qwen3VLMoe)}


def supported() -> tuple[str, ...]:
    """The `model_type` of every supported family."""
    return tuple(_FAMILIES)


def family_class(config: Any) -> type[Family]:
    """The family of a model's configuration.

    Raises:
        UnsupportedFamily: no family takes models of this type.
    """
    name = getattr(config, "model_type", None)
    family = _FAMILIES.get(str(name))
    if family is None:
        known = ", ".join(f"{each.name} ({each.title})" for each in _FAMILIES.values())
        raise UnsupportedFamily(f"models of type {name!r} are not supported; supported are {known}")
    return family


def family_of(model: nn.Module) -> Family:
    """The family of a model, bound to it.

    Raises:
        UnsupportedFamily: no family takes this model.
    """
    return family_class(getattr(model, "config", None))(model)
