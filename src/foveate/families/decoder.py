"""The decoder of a model family: its layers, masks and rotary position embeddings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number
from foveate.families.placement import execution_device
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

if TYPE_CHECKING:
    from torch import Tensor, nn

_HOLD_COLUMNS = {"full_attention", "sliding_attention", "chunked_attention"}
"""The kinds of layers that hold keys and values of columns."""

_SOFT_CAP = "attn_logit_softcapping"


class Decoder:
    """Describe the decoder of a family; the defaults fit most decoders of transformers.

    A decoder layer is called with `hidden_states` first and all other arguments by name, including `attention_mask`,
    `position_embeddings` and the cache.
    """

    core: nn.Module
    config: Any
    has_model: bool = True
    """False for a family made from a configuration only, which has no `core`."""
    column_inputs: ClassVar[tuple[str, ...]] = ()
    """Arguments of a layer, beside its hidden states, with a row for each column: `(B, S, ...)`."""

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.core.language_model  # pyright: ignore[reportReturnType]

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the decoder, first layer first."""
        return self.decoder.layers  # pyright: ignore[reportReturnType]

    @property
    def decoder_config(self) -> Any:
        """The configuration of the language model."""
        return self.decoder.config if self.has_model else self.config.text_config

    @property
    def decoder_depth(self) -> int:
        """The number of layers of the decoder."""
        return len(self.decoder_layers) if self.has_model else read_number(self.decoder_config, "num_hidden_layers")

    def layer_kinds(self) -> tuple[str, ...]:
        """Return how layers read earlier columns: "full_attention", "sliding_attention", "linear_attention", ..."""
        config = self.decoder_config
        kinds = getattr(config, "layer_types", None)
        plain = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        return tuple(kinds) if kinds else (plain,) * self.decoder_depth

    def memory_kinds(self, first: int = 0) -> tuple[str, ...]:
        """Return the kinds of layers, from `first` on, that hold a memory instead of columns: linear attention, ...

        Nothing can be taken out of a memory again, and padding after what it holds changes it.
        """
        return tuple(sorted(set(self.layer_kinds()[first:]) - _HOLD_COLUMNS))

    def key_layers(self) -> tuple[int, ...]:
        """Return the layer whose keys and values each layer reads: by default, its own."""
        return tuple(range(self.decoder_depth))

    @property
    def is_plain(self) -> bool:
        """Whether every layer sees all earlier columns, so that steps can act between layers."""
        return set(self.layer_kinds()) == {"full_attention"}

    @property
    def window(self) -> int | None:
        """The number of columns that a layer of sliding attention sees; None if the decoder has no such layer."""
        if "sliding_attention" not in self.layer_kinds():
            return None
        return read_number(self.decoder_config, "sliding_window")

    @property
    def chunk(self) -> int | None:
        """The length of the chunks that a layer of chunked attention sees; None if the decoder has no such layer."""
        if "chunked_attention" not in self.layer_kinds():
            return None
        return int(self.decoder_config.attention_chunk_size)

    @property
    def reach(self) -> float:
        """How many columns every layer of attention sees, at least; infinite if all see all earlier ones."""
        return min(math.inf if length is None else length for length in (self.window, self.chunk))

    @property
    def device(self) -> torch.device:
        """The device that inputs go to: the one that text is embedded on."""
        place = execution_device(self.core.get_input_embeddings())  # pyright: ignore[reportCallIssue]
        assert place is not None
        return place

    def rotary(self, hidden: Tensor, position_ids: Tensor, layer: int) -> Any:
        """Return the `position_embeddings` of a layer, for position ids `(B, S)` or `(axes, B, S)`."""
        make: Any = self.decoder.rotary_emb
        if "layer_type" in inspect.signature(make.forward).parameters:
            return make(hidden, position_ids, self.layer_kinds()[layer])
        return make(hidden, position_ids)

    def cos_sin(self, given: Any) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines, each `(B or 1, S, d)`, of what `rotary` returns; by default they are that."""
        return given

    # Queries and keys, for signals. Those of a layer that runs are recorded from its own modules; those of a layer that
    # is about to run are computed by them. Callers select rows first, so that only the rows they need are computed.

    def gives_inside(self, signal: Signal) -> bool:
        """Return whether the family can compute this signal; most need the queries and keys of decoder layers."""
        if isinstance(signal, Text | DecoderInput | Behind):
            return True
        if not self._makes_queries():
            return False
        if isinstance(signal, DecoderLogits):
            # A cap is not linear, so queries can't be summed instead of logits.
            return self.soft_cap is None
        return isinstance(signal, DecoderAttention | DecoderKeys | RotaryLogits)

    def _makes_queries(self) -> bool:
        """Return whether layers have separate projections to queries and keys."""
        if not self.has_model:
            # A configuration doesn't say; most attention layers of transformers have them.
            return self.layer_kinds()[0] in _HOLD_COLUMNS
        attention = getattr(self.decoder_layers[0], "self_attn", None)
        return all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim"))

    def queries(self, layer: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return the queries of a layer, after rotary embedding: `(..., D)` and `(..., d)` twice -> `(..., H, d)`."""
        return self.rotated(layer, self._projected(layer, "q", hidden), rotary)

    def keys(self, layer: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return the keys of a layer, after rotary embedding: `(..., D)` and `(..., d)` twice -> `(..., H_keys, d)`."""
        return self.rotated(layer, self._projected(layer, "k", hidden), rotary)

    def decoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the modules of a layer whose outputs are its "queries" and "keys" before rotary embedding."""
        attention: Any = self.decoder_layers[layer].self_attn
        norms = {name: getattr(attention, f"{name[0]}_norm", None) for name in ("queries", "keys")}
        return {name: norm or getattr(attention, f"{name[0]}_proj") for name, norm in norms.items()}

    def recorded(self, output: Tensor) -> Tensor:
        """Return what a module of `decoder_projections` made with columns before heads, by default as it is."""
        return output

    def rotated(self, layer: int, projected: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Apply a layer's rotary embedding to queries or keys.

        Args:
            layer: of the decoder.
            projected: `(..., H d)` or `(..., H, d)`, as the layer's `decoder_projections` return them.
            rotary: cosines and sines, each `(..., d)`.

        Returns:
            `(..., H, d)`.
        """
        attention: Any = self.decoder_layers[layer].self_attn
        heads = projected.reshape(*rotary[0].shape[:-1], -1, attention.head_dim)
        return self.rotate(layer, heads, *(each[..., None, :] for each in rotary))

    def rotate(self, layer: int, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply a layer's rotary embedding: `(..., d)` with tables `(..., r)`; by default, with halves as pairs."""
        frequencies = getattr(getattr(self.decoder, "rotary_emb", None), "inv_freq", None)
        if frequencies is not None and frequencies.shape[0] == cos.shape[-1]:
            # Some tables have one number for each pair, where most have two.
            cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
        return rotate(values, cos, sin)

    def attention_scale(self, layer: int) -> float:
        """Return the factor of a layer's attention scores before the softmax."""
        return float(self.decoder_layers[layer].self_attn.scaling)  # pyright: ignore

    @property
    def reads_positions(self) -> bool:
        """Whether attention needs position ids beside their rotary embeddings."""
        attention: Any = getattr(self.decoder_layers[0], "self_attn", self.decoder_layers[0])
        given = inspect.signature(type(attention).forward).parameters.get("position_ids")
        return given is not None and given.default is inspect.Parameter.empty

    def query_factor(self, layer: int, positions: Tensor, columns: Tensor) -> Tensor | None:
        """Return what queries of a layer are multiplied by after rotary embedding, `(B or 1, M)`; None for nothing.

        Decoders with `llama_4_scaling_beta` in `rope_parameters` enlarge those of late positions.

        Args:
            layer: of the decoder.
            positions: `(B or 1, M)`, the position ids of the queries.
            columns: `(1, M)`, their numbers among the columns that the layer holds.
        """
        rope = getattr(self.decoder_config, "rope_parameters", None) or {}
        beta, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if not beta or not length or not self.reads_positions:
            return None
        return 1 + beta * torch.log1p(torch.floor(positions / length))

    def attention_sinks(self, layer: int) -> Tensor | None:
        """Return the logit, per head `(H,)`, that a layer's softmax counts beside those of columns; None for none."""
        return getattr(self.decoder_layers[layer].self_attn, "sinks", None)

    @property
    def soft_cap(self) -> float | None:
        """The soft cap of attention scores, which they stay below; None if the decoder has none.

        Some configurations name one that the model's attention never reads; torch's own attention knows none.
        """
        cap = getattr(self.decoder_config, _SOFT_CAP, None)
        if cap is None or not self.has_model:
            return cap
        if getattr(self.decoder.config, "_attn_implementation", None) == "sdpa":
            return None
        attention = getattr(self.decoder_layers[0], "self_attn", self.decoder_layers[0])
        reads = inspect.unwrap(type(attention).forward).__code__.co_names
        return cap if _SOFT_CAP in reads else None

    def _attended(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the attention of a layer reads: the layer's input after its first norm.

        Raises:
            FoveateError: the layer has no norm before attention.
        """
        norm = getattr(self.decoder_layers[layer], "input_layernorm", None)
        if norm is None:
            raise FoveateError(
                f"layer {layer} of the decoder has no norm before attention, so what it reads isn't known"
            )
        return norm(hidden)

    def _projected(self, layer: int, which: str, hidden: Tensor) -> Tensor:
        """Return the queries ("q") or keys ("k") of a layer before rotary embedding: `(..., D)` -> `(..., H, d)`.

        Where the layer runs on another device than what it reads comes from, it is sent there and back.
        """
        attention: Any = self.decoder_layers[layer].self_attn
        project = getattr(attention, f"{which}_proj")
        there = hidden.to(execution_device(self.decoder_layers[layer]))
        heads = project(self._attended(layer, there)).unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{which}_norm", None)
        return (heads if norm is None else norm(heads)).to(hidden.device)

    # The loop over the layers

    def take_additions(self, call: dict[str, Any]) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """Remove from a call of the decoder the tensors that its loop adds to visual tokens after the first layers.

        Args:
            call: the arguments of the decoder, by name.

        Returns:
            The call without them; and one `(V, D)` per layer, from the first on, for all visual tokens in row order.
        """
        return call, ()

    def causal_mask(
        self,
        hidden: Tensor,
        mask: Tensor,
        cache: Any,
        layer: int,
        beyond: Callable[..., Any] | None = None,
        within: Callable[..., Any] | None = None,
    ) -> Any:
        """Return the mask that a layer takes; see `foveate.transformers_api.causal_mask`."""
        return causal_mask(self.decoder_config, hidden, mask, cache, layer, beyond, within)


def rotate_neighbours(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding with neighbours as pairs: `(..., d)` with tables `(..., r)`; only the first r rotate."""
    width = cos.shape[-1]
    turned, rest = values[..., :width], values[..., width:]
    crossed = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([turned * cos + crossed * sin, rest], dim=-1)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding with the halves as pairs: `(..., d)` with tables `(..., r)`; only the first r rotate."""
    width = cos.shape[-1]
    turned, rest = values[..., :width], values[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
