"""LLaVA-NeXT-Video: LLaVA-NeXT, and clips whose frames are pooled.  Zhang et al. 2024, "LLaVA-NeXT-Video" (blog)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from foveate.families.config_fields import read_number
from foveate.families.family import Capture
from foveate.families.frame_clips import FrameClips
from foveate.families.registry import register_family
from foveate.layout import Layout, Segment
from foveate.tokens import Signal

if TYPE_CHECKING:
    from torch import Tensor


@register_family
class LlavaNextVideo(FrameClips):
    """LLaVA-NeXT for images; the frames of a clip are pooled behind the encoder, 2 x 2 patches to a token.

    Frames of a clip are not tiled, and no newlines stand among them. `@features` is behind the pooling. Attention and
    keys of a token are the means of its patches, each of [CLS] in its own frame.
    """

    name = "llava_next_video"
    title = "LLaVA-NeXT-Video"
    core_class = "LlavaNextVideoModel"
    clip_places = ("features", "input", "decoder")
    checkpoints: ClassVar[tuple[str, ...]] = (
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf",
        "llava-hf/LLaVA-NeXT-Video-7B-32K-hf",
        "llava-hf/LLaVA-NeXT-Video-34B-hf",
        "llava-hf/LLaVA-NeXT-Video-34B-DPO-hf",
    )

    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the grid of a clip, whose frames all have one size."""
        side = self.side // self.stride
        return Layout((Segment(frames, side, side),), times=tuple(range(frames)))

    @property
    def stride(self) -> int:
        """Patches along one side of a token of a clip."""
        return read_number(self.config, "spatial_pool_stride")

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention of [CLS] `(N,)`, or keys `(N, D_key)`, within each token's crop or frame."""
        if not any(layout.is_clip for layout in capture.layouts):
            return super().encoder_signal(signal, capture)
        crops = self.crop_signal(signal, capture)
        planes = crops.reshape(*crops.shape[:2], -1).transpose(1, 2).unflatten(2, (self.side, self.side))
        pooled = torch.nn.functional.avg_pool2d(planes, self.stride).flatten(2).transpose(1, 2)
        return self.in_token_order(pooled.reshape(*pooled.shape[:2], *crops.shape[2:]), capture)

    def in_token_order(self, crops: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Order values per patch of all crops, or per token of all frames, as the tokens of each image or clip."""
        if not any(layout.is_clip for layout in capture.layouts):
            return super().in_token_order(crops, capture)
        return crops.unflatten(0, (len(capture.layouts), -1)).flatten(1, 2).unbind(0)
