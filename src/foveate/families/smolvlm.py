"""SmolVLM and SmolVLM2: Idefics3 with a smaller encoder and decoder.  Marafioti et al. 2025, arXiv 2504.05299."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.families.idefics3 import Idefics3
from foveate.families.registry import register_family
from foveate.families.tiling import TileGrid
from foveate.layout import Layout


@register_family
class SmolVlm(Idefics3):
    """Idefics3's tiles, signals and ways to resize. Frames of a clip are images of one tile, their times text."""

    name = "smolvlm"
    title = "SmolVLM"
    checkpoints = (
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    )
    core_class = "SmolVLMModel"
    since = (5, 21)  # before, features go into the prompt in blocks of one length
    clips_are_images = True
    encoders = ("smolvlm_vision", "smolvlm_vision_model")

    def frame_layout(self, height: int, width: int) -> Layout:
        """Return one tile, whatever the size."""
        return self.tiled(TileGrid(), self.tile_side)

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the tiles of each row of the prompt; where all are zeros, the model sees the first one."""
        counts = super().tile_counts(inputs)
        return counts if any(counts) else [1, *counts[1:]]
