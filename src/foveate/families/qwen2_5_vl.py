"""Qwen2.5-VL: windowed attention and no [CLS], a 2 x 2 merger, M-RoPE.  Bai et al. 2025, arXiv 2502.13923."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from foveate.errors import FoveateError
from foveate.families.config_fields import read_field, read_number
from foveate.families.family import Capture
from foveate.families.qwen import QwenVL
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.layout import Layout
from foveate.transformers_api import window_order

if TYPE_CHECKING:
    from torch import Tensor


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
    clip_places = ("pixels", "features", "input", "decoder")
    video_inputs = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")

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

    def timed(self, layouts: Sequence[Layout], inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return layouts whose frames are as far apart as `second_per_grid_ts` says, by default a second.

        Raises:
            FoveateError: it has no number for every clip.
        """
        given = inputs.get("second_per_grid_ts")
        seconds: list[float] = [1.0] * len(layouts) if given is None else torch.as_tensor(given).flatten().tolist()
        # Beams repeat the number of each clip.
        beams, rest = divmod(len(seconds), len(layouts))
        if rest or not beams:
            raise FoveateError(
                f"second_per_grid_ts has {len(seconds)} numbers for {len(layouts)} clips; pass both as the processor "
                "returned them"
            )
        rate = read_number(self.config.vision_config, "tokens_per_second")
        return tuple(
            replace(layout, times=tuple((torch.arange(layout.segments[0].t) * (rate * step)).long().tolist()))
            for layout, step in zip(layouts, seconds[::beams], strict=True)
        )

    def in_token_order(self, rows: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Split rows of all images in window order `(tokens, ...)` by image, in token order."""
        tower: Any = self.tower
        order = window_order(capture.extra["grids"], self.merge, tower.window_size, tower.patch_size).to(rows.device)
        return rows[order].split([layout.total for layout in capture.seen])
