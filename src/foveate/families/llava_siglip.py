"""LLaVA with a SigLIP encoder, such as LLaVA-Interleave.  Li et al. 2024, arXiv 2407.07895."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from foveate.families.registry import register_family
from foveate.families.siglip import SiglipCrops


@register_family
class LlavaSiglip(SiglipCrops):
    """LLaVA with a SigLIP tower. Places and ways to resize are those of LLaVA."""

    name = "llava_siglip"
    title = "LLaVA with SigLIP"
    model_type = "llava"
    example: ClassVar[Mapping[str, Any]] = {"vision_feature_select_strategy": "full"}
    checkpoints: ClassVar[tuple[str, ...]] = (
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "llava-hf/llava-interleave-qwen-7b-hf",
        "llava-hf/llava-interleave-qwen-7b-dpo-hf",
    )
