"""What a model family tells the engine of its decoder: layers, masks and rotary position embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.families.config_fields import read_number
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    RotaryLogits,
    Signal,
    Text,
)
from foveate.transformers_api import causal_mask


class Decoder:
    """The decoder's side of a family; most decoders of transformers are as it says here.

    A decoder layer is called with `hidden_states` first and everything else by name, among it `attention_mask`,
    `position_embeddings` and the cache.
    """

    core: nn.Module
    config: Any
    has_model: bool = True
    """False for a family made from a configuration alone, which has no `core`."""

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
        return self.decoder.config if self.has_model else self.config.text_config

    @property
    def decoder_depth(self) -> int:
        """The number of the decoder's layers."""
        return len(self.decoder_layers) if self.has_model else read_number(self.decoder_config, "num_hidden_layers")

    def layer_kinds(self) -> tuple[str, ...]:
        """What each layer does with earlier columns: "full_attention", "sliding_attention", "linear_attention", ..."""
        config = self.decoder_config
        kinds = getattr(config, "layer_types", None)
        plain = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        return tuple(kinds) if kinds else (plain,) * self.decoder_depth

    @property
    def window(self) -> int | None:
        """How many columns a layer of sliding attention sees; None if the decoder has no such layer."""
        if "sliding_attention" not in self.layer_kinds():
            return None
        return int(self.decoder_config.sliding_window)

    @property
    def devices(self) -> set[str]:
        """Where the decoder's layers run; a layer that waits elsewhere for its turn runs where accelerate sends it."""
        found: set[str] = set()
        for layer in self.decoder_layers if self.has_model else ():
            hook = getattr(layer, "_hf_hook", None)
            place = getattr(hook, "execution_device", None)
            weight = next(layer.parameters(), None)
            if place is not None:
                found.add(str(place))
            elif weight is not None:
                found.add(str(weight.device))
        return found

    @property
    def turns_alike(self) -> bool:
        """Whether all layers turn queries and keys by the same angles, so that `rotary` can make them again."""
        if not self.has_model:
            # One set of rotary parameters per kind of layer.
            by_kind = set(getattr(self.decoder_config, "rope_parameters", None) or ())
            return not by_kind & set(self.layer_kinds())
        return "layer_type" not in inspect.signature(self.decoder.rotary_emb.forward).parameters  # pyright: ignore

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> Any:
        """What the layers take as `position_embeddings`: for position ids `(B, S)`, or `(axes, B, S)`."""
        return self.decoder.rotary_emb(hidden, position_ids)  # pyright: ignore[reportCallIssue]

    # What attention is made of, for signals. Rows are taken out before, so only those that matter are computed.

    def gives_inside(self, signal: Signal) -> bool:
        """Whether queries and keys of the layers can be made again, for signals of the decoder."""
        if isinstance(signal, Text | DecoderInput | Behind):
            return True
        if not self._makes_queries():
            return False
        if isinstance(signal, DecoderLogits):
            # A cap is not linear, so logits can't be summed through queries.
            return self.soft_cap is None
        return isinstance(signal, DecoderAttention | DecoderKeys | RotaryLogits)

    def _makes_queries(self) -> bool:
        """Whether layers have separate projections to queries and keys."""
        if not self.has_model:
            # A configuration does not tell; attention layers of transformers have them, with few exceptions.
            return self.layer_kinds()[0] in ("full_attention", "sliding_attention")
        attention = getattr(self.decoder_layers[0], "self_attn", None)
        return all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim"))

    def queries(self, layer: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Queries of a layer, after rotary embedding: `(..., D)` and `(..., d)` twice -> `(..., H, d)`."""
        attention: Any = self.decoder_layers[layer].self_attn
        return self._rotated(attention, "q", self._attended(layer, hidden), rotary)

    def keys(self, layer: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Keys of a layer, after rotary embedding: `(..., D)` and `(..., d)` twice -> `(..., H_keys, d)`."""
        attention: Any = self.decoder_layers[layer].self_attn
        return self._rotated(attention, "k", self._attended(layer, hidden), rotary)

    def attention_scale(self, layer: int) -> float:
        """What attention scores of a layer are multiplied with before the softmax."""
        return float(self.decoder_layers[layer].self_attn.scaling)  # pyright: ignore

    @property
    def soft_cap(self) -> float | None:
        """The number that attention scores are bent to stay below; None if they aren't."""
        return getattr(self.decoder_config, "attn_logit_softcapping", None)

    def _attended(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the attention of a layer reads: the layer's input after its first norm."""
        return self.decoder_layers[layer].input_layernorm(hidden)  # pyright: ignore[reportCallIssue]

    @staticmethod
    def _rotated(attention: Any, which: str, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        heads = getattr(attention, f"{which}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{which}_norm", None)
        return rotate(heads if norm is None else norm(heads), *(each[..., None, :] for each in rotary))

    # What the loop over the layers does

    def take_additions(self, call: dict[str, Any]) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """Take out of a call of the decoder what its own loop adds to the visual tokens after its first layers.

        Args:
            call: the arguments of the decoder, by name.

        Returns:
            The call without them; and per layer, from the first on, `(V, D)` for all visual tokens in row order.
        """
        return call, ()

    def causal_mask(self, hidden: Tensor, mask: Tensor, cache: Any, layer: int) -> Any:
        """Make the mask that a layer takes; see `foveate.transformers_api.causal_mask`."""
        return causal_mask(self.decoder_config, hidden, mask, cache, layer)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding, halves as pairs: `(..., d)` with tables `(..., r)`; numbers after the first r stay."""
    width = cos.shape[-1]
    turned, rest = values[..., :width], values[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
