"""The positions of Qwen2-VL, which many models have: frame, row and column of each visual token.

Wang et al. 2024, arXiv 2409.12191, call them M-RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number
from foveate.families.family import Family
from foveate.tokens import Layout, Segment

if TYPE_CHECKING:
    from torch import Tensor


class MRope(Family):
    """Images come with `image_grid_thw`, and position ids have three axes: frame, row, column."""

    position_axes = 3
    memories = ("rope_deltas",)

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config.vision_config, "spatial_merge_size")

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return one grid per row `(t, h, w)` of `image_grid_thw`, which counts patches."""
        return self.grid_layouts(self._grids(inputs))

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the images of `inputs`, and return the model's own container."""
        self._grids(inputs)
        return super().encode(inputs)

    def _grids(self, inputs: Mapping[str, Any], name: str = "image_grid_thw", beside: str = "pixel_values") -> Tensor:
        """Return the grids of images or clips, `(images, 3)` int64.

        Args:
            inputs: of a call.
            name: of the input that has them.
            beside: the input with their pixels.

        Raises:
            FoveateError: it isn't there.
        """
        grids = inputs.get(name)
        if grids is None:
            raise FoveateError(f"{self.title} needs {name} beside {beside}; the processor returns both")
        return grids

    def grid_layouts(self, grids: Tensor) -> tuple[Layout, ...]:
        """Return one grid of visual tokens per `(t, h, w)` in patches."""
        return tuple(Layout((Segment(t, h // self.merge, w // self.merge),)) for t, h, w in grids.tolist())

    def image_positions(self, layout: Layout) -> Tensor:
        """Return frame, or the time of a clip's frame, row and column of each token: `(3, N)`."""
        (segment,) = layout.segments
        frames = torch.tensor(layout.times) if layout.is_clip else torch.arange(segment.t)
        axes = torch.meshgrid(frames, torch.arange(segment.h), torch.arange(segment.w), indexing="ij")
        return torch.stack(axes).flatten(1)

    def image_spans(self, layout: Layout) -> tuple[int, ...]:
        """Return the longer side: text continues after the image's rows and columns, however many frames it has."""
        (segment,) = layout.segments
        return (max(segment.h, segment.w),) * len(layout.run_lengths)

    def text_position(self, position_ids: Tensor) -> int | None:
        """Read the row of text positions above the three axes, or plain positions plus the model's `rope_deltas`."""
        if position_ids.ndim == 3 and position_ids.shape[0] == 4:
            return int(position_ids[0, 0, 0])
        if position_ids.ndim == 3 and position_ids.shape[0] == 1 and self.core.rope_deltas is not None:
            return int(position_ids[0, 0, 0]) - int(self.core.rope_deltas[0])  # pyright: ignore
        return None
