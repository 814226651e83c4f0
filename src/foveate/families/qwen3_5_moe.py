"""Qwen3.5 with a mixture of experts in its decoder."""

from __future__ import annotations

from foveate.families.qwen3_5 import Qwen35
from foveate.families.registry import register_family


@register_family
class Qwen35Moe(Qwen35):
    """Qwen3.5 with a mixture of experts: encoder, positions and kinds of decoder layers are those of Qwen3.5."""

    name = "qwen3_5_moe"
    title = "Qwen3.5 MoE"
    core_class = "Qwen3_5MoeModel"
