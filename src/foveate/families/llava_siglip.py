"""LLaVA with a SigLIP encoder, such as LLaVA-Interleave.  Li et al. 2024, arXiv 2407.07895."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from foveate.errors import UnsupportedFamily
from foveate.families.family import Capture, attention_received
from foveate.families.llava import Llava
from foveate.families.registry import register_family
from foveate.tokens import EncoderAttention, EncoderKeys, Signal


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
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        if strategy != "full":
            raise UnsupportedFamily(
                f"{self.title} that drops the encoder's first row (vision_feature_select_strategy={strategy!r}), which "
                "is a patch, is not supported; 'full' is"
            )

    def crop_signal(self, signal: Signal, capture: Capture) -> Tensor:
        """Compute attention received or keys for all images of a call: `(images, N)` or `(images, N, D_key)`."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        keys: Tensor = call["keys"].unflatten(-1, (-1, attention.head_dim))
        if isinstance(signal, EncoderKeys):
            return keys.mean(dim=2) if signal.heads == "mean" else keys.flatten(2)
        queries: Tensor = call["queries"].unflatten(-1, (-1, attention.head_dim))
        # After a step at `@encoder` a mask weighs each token, the same for every row.
        mask = call.get("attention_mask")
        bias = None if mask is None else mask[:, 0, 0]
        rows = queries.transpose(1, 2), keys.transpose(1, 2)
        return attention_received(*rows, attention.scale, heads=signal.heads, bias=bias) / keys.shape[1]
