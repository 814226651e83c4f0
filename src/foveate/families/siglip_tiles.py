"""Tiles that a SigLIP encoder sees, without [CLS]: its sizes and its signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.families.config_fields import read_number
from foveate.families.family import Capture, attention_received
from foveate.families.tiling import TiledFamily
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn


class SiglipTiles(TiledFamily):
    """A family whose tower is a SigLIP encoder, and whose visual tokens are squares of its patches.

    `EncoderAttention` is the attention that the patches of a token receive, as a share of all attention in their tile.
    SigLIP's pooling head, where a checkpoint has one, is not asked: nothing that the decoder reads depends on it.
    """

    outside_encoder = "the pixel shuffle after its encoder reads blocks of patches, which merging would break up"

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def edge(self) -> int:
        """Pixels along one side of a tile."""
        return read_number(self.config.vision_config, "image_size")

    @property
    def projector_widths(self) -> tuple[int, ...]:
        """Widths between the projector's layers; () for one matrix."""
        return ()

    def vision_shape(self) -> VisionShape:
        """Read SigLIP's sizes, and those of the projector."""
        return VisionShape.read(self.config, self.patch, merge=self.merge, projector_widths=self.projector_widths)

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each SigLIP layer."""
        return [layer.self_attn for layer in self.tower.encoder.layers]  # pyright: ignore

    def check_attention(self, capture: Capture) -> None:
        """Check that every patch of a call attends to every patch of its tile; by default, it does.

        Raises:
            FoveateError: it doesn't.
        """

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention received `(N,)`, which sums to 1 per tile, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        query, key = self.patch_heads(capture, layer)
        if isinstance(signal, EncoderKeys):
            key = key.mean(dim=2) if signal.heads == "mean" else key.flatten(2)
            return self.by_image(self.by_token(key).mean(dim=2), capture)
        self.check_attention(capture)
        heads = query.transpose(1, 2), key.transpose(1, 2)
        received = attention_received(*heads, attention.scale, heads=signal.heads)
        return self.by_image(self.by_token(received).sum(dim=2) / received.shape[1], capture)
