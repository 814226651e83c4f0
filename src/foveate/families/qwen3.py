"""What Qwen's encoders share since Qwen3-VL: full attention, a merger of two layers, interpolated positions."""

from __future__ import annotations

from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number
from foveate.families.qwen import QwenVL
from foveate.families.vision_shape import VisionShape
from foveate.layout import Layout, Segment

if TYPE_CHECKING:
    from torch import Tensor, nn


class Qwen3Encoder(QwenVL):
    """Patches attend to all patches of their image.

    Position embeddings of the encoder are interpolated, so resizing is exact for any grid.
    """

    pixel_limits = (65_536, 16_777_216)
    clip_pixel_limits = (4_096, 25_165_824)

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes; each layer of DeepStack, where a model has it, has a projector of its own."""
        vision = self.config.vision_config
        return self._shape(
            read_number(vision, "hidden_size"),
            read_number(vision, "intermediate_size"),
            extra_projectors=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        )

    def clip_of(self, frames: int, rows: int, columns: int) -> Layout:
        """Return the layout of a clip: each frame is a run after its time, which is text, and begins time anew."""
        runs = (rows * columns,) * frames if frames > 1 else ()
        return Layout((Segment(frames, rows, columns),), runs=runs, times=(0,) * frames)

    def frame_grid(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of each frame: the limits are those of all frames together.

        Raises:
            FoveateError: there are fewer frames than a patch holds.
        """
        depth = self.frames_per_patch
        if frames < depth:
            raise FoveateError(f"a clip of {self.title} has {depth} frames or more, and this one has {frames}")
        factor = read_number(self.config.vision_config, "patch_size") * self.merge
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        self.check_sides(height, width)
        least, most = self.clip_pixel_limits
        rows, columns = (round(side / factor) for side in (height, width))
        pixels = round(frames / depth) * depth * rows * columns * factor**2
        if pixels > most:
            scale = sqrt(frames * height * width / most)
            rows, columns = (max(1, floor(side / scale / factor)) for side in (height, width))
        elif pixels < least:
            scale = sqrt(least / (frames * height * width))
            rows, columns = (ceil(side * scale / factor) for side in (height, width))
        return rows, columns

    @property
    def feature_module(self) -> nn.Module:
        """The first layer of the merger's MLP, which reads four normalised patches side by side."""
        return self.core.visual.merger.linear_fc1  # pyright: ignore

    def project(self, features: Tensor) -> Tensor:
        """Apply the merger without its norm."""
        merger: Any = self.core.visual.merger  # pyright: ignore
        return merger.linear_fc2(merger.act_fn(merger.linear_fc1(features)))
