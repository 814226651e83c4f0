"""Qwen2.5-VL: windowed attention and no [CLS], a 2 x 2 merger, M-RoPE.  Bai et al. 2025, arXiv 2502.13923."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture
from foveate.families.qwen import QwenVL
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.transformers_api import window_order


@register_family
class Qwen25VL(QwenVL):
    """Qwen2.5-VL: images of any size, four patches per visual token; most encoder layers attend within windows.

    The encoder has patches in window order; this family returns everything in the order of the visual tokens.
    Attention is that of the layer, so within its windows.
    """

    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    checkpoints = (
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2.5-VL-32B-Instruct",
        "Qwen/Qwen2.5-VL-72B-Instruct",
        "ByteDance-Seed/UI-TARS-1.5-7B",
        "allenai/olmOCR-2-7B-1025",
    )
    core_class = "Qwen2_5_VLModel"

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes: gated MLPs, and layers that attend within windows."""
        vision = self.config.vision_config
        return self._shape(
            read_number(vision, "hidden_size"),
            read_number(vision, "intermediate_size"),
            gated_mlp=True,
            window=read_number(vision, "window_size") // read_number(vision, "patch_size"),
            full_attention_layers=frozenset(read_field(vision, "fullatt_block_indexes")),
        )

    def in_token_order(self, rows: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Split rows of all images in window order `(tokens, ...)` by image, in token order."""
        tower: Any = self.tower
        order = window_order(capture.extra["grids"], self.merge, tower.window_size, tower.patch_size).to(rows.device)
        return rows[order].split([layout.total for layout in capture.seen])
