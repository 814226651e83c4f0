"""What families with a SigLIP encoder share: every row of it is a patch.  Zhai et al. 2023, arXiv 2303.15343."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from foveate.families.family import Family, attention_received
from foveate.families.llava import Llava, check_all_patches

if TYPE_CHECKING:
    from torch import Tensor


class SiglipCrops(Llava):
    """LLaVA's architecture with a SigLIP tower, all of whose rows become visual tokens.

    There is no [CLS]: `EncoderAttention` is the attention that a token receives, as a share of all attention between
    the patches of its image or crop. SigLIP's pooling head, where a checkpoint has one, is not asked: nothing that the
    decoder reads depends on it.
    """

    gives_pixels = False
    encoders = ("siglip_vision_model",)
    encoder_marks = 0

    def check_config(self) -> None:
        """Check that the encoder is SigLIP's and that no patch is dropped after it."""
        self.check_encoder()
        self.check_feature_layers()
        check_all_patches(self)

    def crop_attention(
        self, queries: Tensor, keys: Tensor, scale: float, heads: Literal["mean", "full"], bias: Tensor | None
    ) -> Tensor:
        """Compute the attention that patches receive: `(images, N, H, d)` twice -> `(images, N)`."""
        rows = queries.transpose(1, 2), keys.transpose(1, 2)
        return attention_received(*rows, scale, heads=heads, bias=bias) / keys.shape[1]


class SiglipOutput(SiglipCrops):
    """A family that reads what the whole encoder returns, and never another layer of it."""

    pixel_inputs = ("pixel_values",)

    def check_config(self) -> None:
        """Check that the encoder is SigLIP's."""
        self.check_encoder()

    def check_feature_maps(self) -> None:
        """Refuse: features of another layer can't stand for those of the last one."""
        Family.check_feature_maps(self)

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels alone."""
        return self.pixel_inputs

    @property
    def encoder_reads(self) -> int:
        """The last layer."""
        return int(self.config.vision_config.num_hidden_layers) - 1
