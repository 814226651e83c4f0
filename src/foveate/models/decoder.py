"""What a model family tells the engine of its decoder: layers, masks and rotary position embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Cache


class Decoder:
    """The decoder's side of a family; most decoders of transformers are as it says here.

    A decoder layer is called with `hidden_states` first and everything else by name, among it `attention_mask`,
    `position_embeddings` and `past_key_values`.
    """

    core: nn.Module

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.core.language_model  # pyright: ignore[reportReturnType]

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder's layers, first layer first."""
        return self.decoder.layers  # pyright: ignore[reportReturnType]

    @property
    def decoder_config(self) -> Any:
        """The configuration of the language model."""
        return self.decoder.config

    def layer_kinds(self) -> tuple[str, ...]:
        """What each layer does with earlier columns: "full_attention", "sliding_attention", "linear_attention", ..."""
        kinds = getattr(self.decoder_config, "layer_types", None)
        return tuple(kinds) if kinds else ("full_attention",) * len(self.decoder_layers)

    @property
    def window(self) -> int | None:
        """How many columns a layer of sliding attention sees; None if the decoder has no such layer."""
        if "sliding_attention" not in self.layer_kinds():
            return None
        return int(self.decoder_config.sliding_window)

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> Any:
        """What the layers take as `position_embeddings`: for position ids `(B, S)`, or `(axes, B, S)`."""
        return self.decoder.rotary_emb(hidden, position_ids)  # pyright: ignore[reportCallIssue]

    def take_additions(self, call: dict[str, Any]) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """Take out of a call of the decoder what its own loop adds to the visual tokens behind its first layers.

        Args:
            call: the arguments of the decoder, by name.

        Returns:
            The call without them; and per layer, from the first on, `(V, D)` for all visual tokens in row order.
        """
        return call, ()

    def causal_mask(self, hidden: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Any:
        """The mask that a layer takes, in whatever form the attention implementation wants it.

        Args:
            hidden: `(B, S, D)`, what the layer is about to read.
            mask: `(B, P + S)`, 0 at padding, over what the layer's cache holds and the S new columns.
            cache: of the conversation, not holding the new columns in this layer yet; or None.
            layer: whose cache is meant.
        """
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.decoder_config,
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=None,
            layer_idx=layer,
        )
