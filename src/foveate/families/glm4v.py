"""GLM-4.1V: full attention and no [CLS], a down-sampling convolution, M-RoPE.  GLM-V Team 2025, arXiv 2507.01006."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import kind_of, read_number
from foveate.families.decoder import rotate_neighbours
from foveate.families.family import Capture
from foveate.families.qwen import QwenVL
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.tokens import Layout, Segment

if TYPE_CHECKING:
    from torch import Tensor, nn

_PAIRS_NEIGHBOURS = {"glm4v_text": True, "glm_ocr_text": True, "glm4v_moe_text": False}
"""The decoders that these models take, and whether their rotary embedding turns neighbours, not halves of a head."""


class GlmV(QwenVL):
    """Images of any size, four patches per visual token, positions of Qwen2-VL.

    Behind the encoder's last layer a convolution makes one token of 2 x 2 patches; the merger's MLP reads it, which is
    `@features`. The encoder interpolates its position embeddings, so resizing is exact for any grid. A clip has the
    placeholders of images, and only `mm_token_type_ids` tells them apart: 1 for images, 2 for clips.
    """

    pixel_limits = (12_544, 11_760_000)
    """Frames times pixels of a resized image, at least and at most, as its image processor has them by default."""
    decoders: ClassVar[tuple[str, ...]]
    """The `model_type` of the decoders that it takes."""

    def check_config(self) -> None:
        """Check that the encoder and the decoder are those that it knows.

        Raises:
            UnsupportedFamily: one is not.
        """
        self.check_encoder()
        decoder = getattr(getattr(self.config, "text_config", None), "model_type", None)
        if decoder not in self.decoders:
            raise UnsupportedFamily(
                f"{self.title} with a {decoder} decoder is not supported yet; {self.title} with "
                f"{' or '.join(self.decoders)} is"
            )

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes: gated MLPs, a convolution behind the last layer, a gated projector."""
        vision = self.config.vision_config
        out = read_number(vision, "out_hidden_size")
        mlp_width, projector_width = self.mlp_widths
        return replace(
            self._shape(read_number(vision, "hidden_size"), mlp_width, gated_mlp=True, gated_projector=True),
            down_sampled=out,
            projector_widths=(out, projector_width),
        )

    @property
    def mlp_widths(self) -> tuple[int, int]:
        """Widths inside the MLPs of an encoder layer and of the merger."""
        vision = self.config.vision_config
        return read_number(vision, "out_hidden_size"), read_number(vision, "intermediate_size")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the grid of an image of `height` x `width` pixels.

        An image with a side shorter than a token is enlarged first. Then sides are rounded to whole tokens, within the
        limits, which count the frames of a patch.

        Raises:
            FoveateError: one side is more than 200 times as long as the other.
        """
        vision = self.config.vision_config
        factor = read_number(vision, "patch_size") * self.merge
        frames = read_number(vision, "temporal_patch_size")
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > 200 * min(height, width):
            raise FoveateError(
                f"an image of {width} x {height} pixels is too long for {self.title}: its sides may be 200 to 1 at most"
            )
        least, most = self.pixel_limits
        rows, columns = (round(side / factor) for side in (height, width))
        if frames * rows * columns * factor**2 > most:
            scale = sqrt(frames * height * width / most)
            rows, columns = (max(1, floor(side / scale / factor)) for side in (height, width))
        elif frames * rows * columns * factor**2 < least:
            scale = sqrt(least / (frames * height * width))
            rows, columns = (ceil(side * scale / factor) for side in (height, width))
        return Layout((Segment(1, rows, columns),))

    @property
    def feature_module(self) -> nn.Module:
        """The merger, which reads one down-sampled token."""
        return self.core.visual.merger  # pyright: ignore

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The convolution that down-samples, and the merger."""
        visual: Any = self.core.visual
        return (visual.downsample, visual.merger)

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return down-sampled tokens, per image `(N, D_decoder)`."""
        return super().features(capture)

    def project(self, features: Tensor) -> Tensor:
        """Apply the merger."""
        return self.core.visual.merger(features)  # pyright: ignore

    def rotate(self, layer: int, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the decoder's rotary embedding, which turns neighbours of a head in most of these decoders."""
        pairs_neighbours = _PAIRS_NEIGHBOURS[kind_of(self.decoder_config)]
        return rotate_neighbours(values, cos, sin) if pairs_neighbours else super().rotate(layer, values, cos, sin)


@register_family
class Glm4v(GlmV):
    """GLM-4.1V: images of any size, four patches per visual token, full attention between the patches of an image."""

    name = "glm4v"
    title = "GLM-4.1V"
    core_class = "Glm4vModel"
    encoders = ("glm4v_vision",)
    decoders = ("glm4v_text",)
    checkpoints: ClassVar[tuple[str, ...]] = ("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.6V-Flash")
