"""Clips of LLaVA models: frames of one size, each encoded as an image of its own and pooled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from foveate.errors import FoveateError, shown
from foveate.families.family import Capture
from foveate.families.llava_next import LlavaNext
from foveate.layout import Layout, Segment


class FrameClips(LlavaNext):
    """The images of LLaVA-NeXT, and clips as `pixel_values_videos`, `(clips, frames, channels, height, width)`.

    Frames aren't tiled, and all clips of a call have the same number of frames.
    """

    @abstractmethod
    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the grid of a clip, whose frames all have one size."""

    def clip_layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of each clip of `pixel_values_videos`.

        Raises:
            FoveateError: they are something else, or frames have another size than the encoder takes.
        """
        pixels = inputs["pixel_values_videos"]
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 5:
            found = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else shown(pixels)
            raise FoveateError(
                f"pixel_values_videos of {self.title} must be a tensor (clips, frames, channels, height, width), not "
                f"{found}"
            )
        self.check_pixels(pixels)
        return (self.clip_layout(pixels.shape[1], *pixels.shape[3:]),) * pixels.shape[0]

    @property
    def clip_encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layers of the tower that are read."""
        return (*self.video_inputs, "vision_feature_layer", "vision_feature_select_strategy")

    def encode_clips(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the clips of `inputs`, and return the model's own container."""
        self.clip_layouts(inputs)
        return super().encode_clips(inputs)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of a crop, once for each crop; of a clip all its frames."""
        if not layout.is_clip:
            return super().encoder_grids(layout)
        return (Segment(layout.segments[0].t, self.side, self.side),)

    def clip_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the clips from their pixels."""
        layouts = self.clip_layouts(kwargs)
        return Capture(layouts=layouts, seen=layouts)
