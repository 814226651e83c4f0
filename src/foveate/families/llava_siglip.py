"""LLaVA with a SigLIP encoder, such as LLaVA-Interleave.  Li et al. 2024, arXiv 2407.07895."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.families.family import attention_received
from foveate.families.llava import Llava, check_all_patches
from foveate.families.registry import register_family


@register_family
class LlavaSiglip(Llava):
    """LLaVA with a SigLIP tower: every row of the encoder is a patch, and all of them become visual tokens.

    There is no [CLS]: `EncoderAttention` is the attention that a token receives, as a share of all attention between
    the image's patches. SigLIP's pooling head, where a checkpoint has one, is not asked: nothing that the decoder reads
    depends on it. Places and ways to resize are those of LLaVA.
    """

    name = "llava_siglip"
    title = "LLaVA with SigLIP"
    model_type = "llava"
    encoders = ("siglip_vision_model",)
    example: ClassVar[Mapping[str, Any]] = {"vision_feature_select_strategy": "full"}
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
