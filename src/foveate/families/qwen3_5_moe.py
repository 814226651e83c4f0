"""Qwen3.5 with a mixture of experts in its decoder."""

from __future__ import annotations

from foveate.families.qwen3_5 import Qwen35
from foveate.families.registry import register_family


@register_family
class Qwen35Moe(Qwen35):
    """Qwen3.5 with a mixture of experts: encoder, positions and kinds of decoder layers are those of Qwen3.5."""

    name = "qwen3_5_moe"
    title = "Qwen3.5 MoE"
    checkpoints = (
        "Qwen/Qwen3.5-35B-A3B",
        "Qwen/Qwen3.5-122B-A10B",
        "Qwen/Qwen3.5-397B-A17B",
    )
    core_class = "Qwen3_5MoeModel"
