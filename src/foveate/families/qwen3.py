"""What Qwen's encoders share since Qwen3-VL: full attention, a merger of two layers, interpolated positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.families.config_fields import read_number
from foveate.families.qwen import QwenVL
from foveate.families.vision_shape import VisionShape


class Qwen3Encoder(QwenVL):
    """Patches attend to all patches of their image.

    Position embeddings of the encoder are interpolated, so resizing is exact for any grid.
    """

    pixel_limits = (65_536, 16_777_216)

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes; each layer of DeepStack, where a model has it, has a projector of its own."""
        vision = self.config.vision_config
        return self._shape(
            read_number(vision, "hidden_size"),
            read_number(vision, "intermediate_size"),
            extra_projectors=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        )

    @property
    def feature_module(self) -> nn.Module:
        """The first layer of the merger's MLP, which reads four normalised patches side by side."""
        return self.core.visual.merger.linear_fc1  # pyright: ignore

    def project(self, features: Tensor) -> Tensor:
        """Apply the merger without its norm."""
        merger: Any = self.core.visual.merger  # pyright: ignore
        return merger.linear_fc2(merger.act_fn(merger.linear_fc1(features)))
