"""Qwen3-VL with a mixture of experts in its decoder.  Bai et al. 2025, arXiv 2511.21631."""

from __future__ import annotations

from foveate.families.qwen3_vl import Qwen3VL
from foveate.families.registry import register_family


@register_family
class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with a mixture of experts: encoder, positions and DeepStack are those of Qwen3-VL.

    DeepStack's features of earlier encoder layers ride along with their tokens.
    """

    name = "qwen3_vl_moe"
    title = "Qwen3-VL MoE"
    checkpoints = (
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "Qwen/Qwen3-VL-30B-A3B-Thinking",
        "Qwen/Qwen3-VL-235B-A22B-Instruct",
        "Qwen/Qwen3-VL-235B-A22B-Thinking",
    )
    core_class = "Qwen3VLMoeModel"
