"""Pixtral: images of any size, a token per patch, a break after each row.  Agrawal et al. 2024, arXiv 2410.07073."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.families.family import Capture
from foveate.families.llava import check_all_patches
from foveate.families.mistral3 import Mistral3
from foveate.families.registry import register_family

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Pixtral(Mistral3):
    """Pixtral 12B: Mistral 3 without its merger, so that each patch is a visual token.

    The tokenizer's [IMG_BREAK] stands between rows of visual tokens, as a text token: it is kept between rows of which
    something is kept. [IMG_END] after the last row always stays. Position ids are one-dimensional.

    `EncoderAttention` is the attention that a token receives, as a share of all attention between the image's patches.
    "exact" resizes an image as if the processor had been given a smaller one; "enlarge" shrinks it and enlarges it
    again, which saves no token.
    """

    name = "pixtral"
    title = "Pixtral"
    checkpoints = ("mistral-community/pixtral-12b",)
    model_type = "llava"
    example: ClassVar[Mapping[str, Any]] = {"vision_feature_select_strategy": "full"}
    core_class = "LlavaModel"
    needs_two = False
    outside_encoder = "the patches of all images are one sequence there, whose rotary embeddings and mask count them"

    @property
    def merge(self) -> int:
        """One: each patch is a visual token."""
        return 1

    def check_config(self) -> None:
        """Check that the encoder is Pixtral's, that one of its layers is read, and that no patch is dropped."""
        super().check_config()
        check_all_patches(self)

    @property
    def feature_module(self) -> nn.Module:
        """The projector: it reads the selected layer of the encoder."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layer of the tower that is read."""
        return (*super().encoder_inputs, "vision_feature_select_strategy")

    @property
    def projector_widths(self) -> tuple[int, ...] | None:
        """None: two layers, with the decoder's width between them."""
        return None

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the selected layer of the encoder, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return capture.by_image(capture.features[0])

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.by_image(capture.projected[0])

    def project(self, features: Tensor) -> Tensor:
        """Apply the two-layer projector."""
        return self.core.multi_modal_projector(features)  # pyright: ignore[reportCallIssue]
