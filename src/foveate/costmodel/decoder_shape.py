"""Count the work of a decoder, layer by layer, from its configuration.

A layer is a mixer (attention or a linear recurrence) and an MLP (gated, plain, or experts). The fields of a
configuration say which ones a decoder has; the tables below hold what the fields do not say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.costmodel.ops import CallPart, Op, attention, elementwise, linear, norm, repeated, rotary
from foveate.errors import FoveateError
from foveate.families.config_fields import read_number

# What the fields of a configuration do not say, by the `model_type` of the decoder.
_PLAIN_MLP = {"opt", "phi", "gpt2", "gpt_neox", "gptj", "bloom", "falcon", "starcoder2", "nemotron", "persimmon"}
_GATED_QUERIES = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
_QUERY_NORMS = {
    "qwen3",
    "qwen3_moe",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_omni_moe_text",
    "gemma3_text",
    "gemma4_text",
    "gemma4_unified_text",
    *_GATED_QUERIES,
}
# Every expert runs on every token, whose values are zeros for most.
_ALL_EXPERTS = {"llama4_text"}
# Fields of designs that are not counted yet; such models are refused.
_UNCOUNTED = {
    "kv_lora_rank": "latent attention",
    "state_size": "state-space layers",
    "mamba_d_state": "state-space layers",
    "cross_attention_layers": "layers that attend to the image from outside the prompt",
    "altup_num_inputs": "parallel residual streams",
}
_CHUNK = 64


@dataclass(frozen=True)
class Attention:
    """Softmax attention: `heads` query heads share `groups` key heads, all `head` wide.

    With a `window`, a query attends to that many keys at most, its own included. With a `chunk`, it attends to those
    from the beginning of its chunk of so many. With `gated`, each query has a gate.
    With `normed`, queries and keys pass a norm. With `tied`, keys are the values, before their norms and rotary
    embedding. With `borrowed`, keys and values are those of an earlier layer, and the cache holds none.
    """

    heads: int
    groups: int
    head: int
    window: int | None = None
    chunk: int | None = None
    gated: bool = False
    normed: bool = False
    tied: bool = False
    borrowed: bool = False

    @property
    def made(self) -> int:
        """How many matrices make keys and values."""
        return 0 if self.borrowed else 1 if self.tied else 2

    def cached(self, tokens: int) -> int:
        """Return how many keys the cache holds after `tokens` tokens."""
        most = self.window or self.chunk
        return tokens if most is None else min(tokens, most - 1)

    def cache(self, tokens: int, size: int) -> int:
        """Return the bytes of one row's cache."""
        return 0 if self.borrowed else 2 * self.groups * self.head * self.cached(tokens) * size

    def parameters(self, hidden: int) -> int:
        """Count the weights, without norms and biases."""
        return hidden * self.head * ((2 if self.gated else 1) * self.heads + self.made * self.groups + self.heads)

    def _projections(self, rows: int, hidden: int, size: int) -> list[Op]:
        queries, keys = self.heads * self.head, 0 if self.borrowed else self.groups * self.head
        ops = [
            linear("queries", rows, hidden, queries * (2 if self.gated else 1), size),
            *repeated([linear("keys and values", rows, hidden, keys, size)], self.made),
            rotary(rows, queries + keys, size),
            linear("output", rows, queries, hidden, size),
            elementwise("heads side by side", rows * queries, 2, size),
        ]
        if self.normed:
            ops += [norm(rows, queries), norm(rows, keys)]
        if self.gated:
            ops.append(elementwise("gate", rows * queries, 5, size, launches=2))
        return ops

    def prefill(self, hidden: int, batch: int, tokens: int, size: int) -> list[Op]:
        """Count the work on `tokens` tokens in each of `batch` rows, with an empty cache."""
        seen = _visible(tokens, self.window) if self.chunk is None else _visible_in_chunks(tokens, self.chunk)
        return [
            *self._projections(batch * tokens, hidden, size),
            attention(batch, self.heads, self.groups, self.head, tokens, tokens, size, seen / tokens**2),
            *self._caching(batch * tokens, size),
        ]

    def last(self, hidden: int, batch: int, tokens: int, size: int) -> list[Op]:
        """Count the work on the last of `tokens` tokens, whose keys and values an earlier layer has made."""
        keys = tokens if self.window is None else min(tokens, self.window)
        return [
            *self._projections(batch, hidden, size),
            attention(batch, self.heads, self.groups, self.head, 1, keys, size),
        ]

    def _caching(self, rows: int | float, size: int) -> list[Op]:
        """Return the work of writing the keys and values of `rows` columns."""
        if self.borrowed:
            return []
        return [elementwise("into the cache", rows * 2 * self.groups * self.head, 2, size, launches=2)]

    def decode(self, hidden: int, batch: int, tokens: int, steps: int, size: int) -> list[Op]:
        """Count the work on `steps` further tokens, one at a time, after `tokens` tokens."""
        keys = sum(self.cached(tokens + step) + 1 for step in range(steps)) / steps
        ops = [
            *self._projections(batch, hidden, size),
            attention(batch, self.heads, self.groups, self.head, 1, keys, size),
            # The cache grows by a copy into a longer one.
            *self._caching(batch * keys, size),
        ]
        return repeated(ops, steps)


@dataclass(frozen=True)
class Delta:
    """A gated delta rule (linear attention): a state of fixed size instead of keys and values.

    The prefill works in chunks of 64 tokens. The cache holds the state and the last inputs of a short convolution,
    for any number of tokens.

    Attributes:
        keys: key heads.
        values: value heads.
        key: width of a key head.
        value: width of a value head.
        kernel: width of the convolution.
    """

    keys: int
    values: int
    key: int
    value: int
    kernel: int

    @property
    def mixed(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys * self.key + self.values * self.value

    def cache(self, tokens: int, size: int) -> int:
        """Return the bytes of one row's cache: states in float32, convolution inputs in the model's type."""
        return self.values * self.key * self.value * _STATE + self.mixed * self.kernel * size

    def parameters(self, hidden: int) -> int:
        """Count the weights, without norms."""
        inner = self.values * self.value
        return hidden * (self.mixed + inner + 2 * self.values) + self.mixed * self.kernel + inner * hidden

    def _projections(self, rows: int, hidden: int, size: int) -> list[Op]:
        inner = self.values * self.value
        return [
            linear("queries, keys, values", rows, hidden, self.mixed, size),
            linear("gate", rows, hidden, inner, size),
            *repeated([linear("decay and rate", rows, hidden, self.values, size)], 2),
            elementwise("activations", rows * self.mixed, 4, size, launches=4),
            norm(rows, inner),
            linear("output", rows, inner, hidden, size),
        ]

    def prefill(self, hidden: int, batch: int, tokens: int, size: int) -> list[Op]:
        """Count the work on `tokens` tokens in each of `batch` rows."""
        chunks = math.ceil(tokens / _CHUNK)
        pairs = 2 * _CHUNK * _CHUNK * self.key * 2
        inside = 2 * _CHUNK * _CHUNK * self.value
        across = 2 * _CHUNK * self.key * self.value * 3
        # The convolution pads on both sides; its output is cut to size.
        taps = 2 * self.mixed * self.kernel * batch * (tokens + self.kernel - 1)
        rows = batch * self.values * chunks * _CHUNK
        return [
            *self._projections(batch * tokens, hidden, size),
            Op("convolution", flops=taps, moved=2 * batch * tokens * self.mixed * size),
            Op(
                "delta rule",
                flops=batch * self.values * chunks * (pairs + inside + across),
                moved=rows * (6 * self.key + 6 * self.value + 4 * _CHUNK) * _STATE,
                launches=30 + 8 * chunks,
            ),
        ]

    def decode(self, hidden: int, batch: int, tokens: int, steps: int, size: int) -> list[Op]:
        """Count the work on `steps` further tokens, one at a time: elementwise operations on the state."""
        # Without its own kernels, transformers computes the convolution for two tokens and drops one.
        taps = 2 * self.mixed * self.kernel * batch * 2
        ops = [
            *self._projections(batch, hidden, size),
            Op("convolution", flops=taps, moved=4 * batch * self.mixed * self.kernel * size, launches=4),
            elementwise("state", batch * self.values * self.key * self.value, 9, _STATE, launches=12),
        ]
        return repeated(ops, steps)


_STATE = 4


@dataclass(frozen=True)
class ShortConvolution:
    """A convolution over neighbouring columns, each channel alone, between two gates.

    The cache holds the last inputs of the convolution, for any number of tokens.

    Attributes:
        width: channels.
        kernel: width of the convolution.
    """

    width: int
    kernel: int

    def cache(self, tokens: int, size: int) -> int:
        """Return the bytes of one row's cache."""
        return self.width * self.kernel * size

    def parameters(self, hidden: int) -> int:
        """Count the weights, without biases."""
        return hidden * 3 * self.width + self.width * self.kernel + self.width * hidden

    def _projections(self, rows: int, hidden: int, size: int) -> list[Op]:
        return [
            linear("gates and values", rows, hidden, 3 * self.width, size),
            elementwise("gates", rows * self.width, 6, size, launches=4),
            linear("output", rows, self.width, hidden, size),
        ]

    def prefill(self, hidden: int, batch: int, tokens: int, size: int) -> list[Op]:
        """Count the work on `tokens` tokens in each of `batch` rows."""
        # The convolution pads on both sides; its output is cut to size.
        taps = 2 * self.width * self.kernel * batch * (tokens + self.kernel - 1)
        convolution = Op("convolution", flops=taps, moved=2 * batch * tokens * self.width * size)
        return [*self._projections(batch * tokens, hidden, size), convolution]

    def decode(self, hidden: int, batch: int, tokens: int, steps: int, size: int) -> list[Op]:
        """Count the work on `steps` further tokens, one at a time."""
        taps = 2 * self.width * self.kernel * batch * 2
        convolution = Op("convolution", flops=taps, moved=4 * batch * self.width * self.kernel * size, launches=4)
        return repeated([*self._projections(batch, hidden, size), convolution], steps)


@dataclass(frozen=True)
class Mlp:
    """Two matrices with an activation between them; three if `gated`."""

    width: int
    gated: bool = True

    def parameters(self, hidden: int) -> int:
        """Count the weights."""
        return (3 if self.gated else 2) * hidden * self.width

    def activation_width(self, hidden: int) -> int:
        """Return how many numbers of one token are in memory at once, at most."""
        return 3 * self.width

    def ops(self, rows: int, hidden: int, size: int) -> list[Op]:
        """Count the work on `rows` tokens."""
        return [
            *repeated([linear("into the MLP", rows, hidden, self.width, size)], 2 if self.gated else 1),
            elementwise("activation", rows * self.width, 5 if self.gated else 2, size, launches=2 if self.gated else 1),
            linear("out of the MLP", rows, self.width, hidden, size),
        ]


@dataclass(frozen=True)
class Experts:
    """Each token takes `active` of `count` gated MLPs; `shared` is the width of one that every token takes, or 0."""

    count: int
    active: int
    width: int
    shared: int = 0
    shared_gate: bool = False

    def parameters(self, hidden: int) -> int:
        """Count the weights of all experts."""
        gate = hidden if self.shared_gate else 0
        return hidden * (self.count + 3 * self.count * self.width + 3 * self.shared) + gate

    def activation_width(self, hidden: int) -> int:
        """Return how many numbers of one token are in memory at once, at most."""
        return self.active * (3 * self.width + hidden) + 3 * self.shared

    def used(self, rows: int) -> float:
        """Estimate how many experts `rows` tokens use, if tokens choose evenly."""
        return self.count * (1 - (1 - self.active / self.count) ** rows)

    def ops(self, rows: int, hidden: int, size: int) -> list[Op]:
        """Count the work on `rows` tokens."""
        taken, read = rows * self.active, self.used(rows)
        ops = [
            linear("router", rows, hidden, self.count, size),
            Op(
                "experts",
                flops=6 * taken * hidden * self.width,
                weights=3 * read * hidden * self.width * size,
                moved=taken * (4 * hidden + 8 * self.width) * size,
                launches=12 * math.ceil(read),
                rows=taken / read,
            ),
        ]
        if self.shared:
            ops += Mlp(self.shared).ops(rows, hidden, size)
        if self.shared_gate:
            ops.append(linear("gate of the shared expert", rows, hidden, 1, size))
        return ops


@dataclass(frozen=True)
class Both:
    """An MLP and experts side by side; their outputs are added."""

    mlp: Mlp
    experts: Experts

    def parameters(self, hidden: int) -> int:
        """Count the weights of both."""
        return self.mlp.parameters(hidden) + self.experts.parameters(hidden)

    def activation_width(self, hidden: int) -> int:
        """Return how many numbers of one token are in memory at once, at most."""
        return hidden + max(self.mlp.activation_width(hidden), self.experts.activation_width(hidden))

    def ops(self, rows: int, hidden: int, size: int) -> list[Op]:
        """Count the work on `rows` tokens."""
        return [
            *self.mlp.ops(rows, hidden, size),
            *self.experts.ops(rows, hidden, size),
            *repeated([norm(rows, hidden)], 3),
            elementwise("both", rows * hidden, 3, size),
        ]


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        mixer: what mixes columns.
        mlp: what acts on each column alone.
        own: width of the input that the layer gets for each token beside its hidden states; 0 for none.
    """

    mixer: Attention | Delta | ShortConvolution
    mlp: Mlp | Experts | Both
    own: int = 0

    def parameters(self, hidden: int) -> int:
        """Count the weights, without norms and biases."""
        return self.mixer.parameters(hidden) + self.mlp.parameters(hidden) + 2 * hidden * self.own


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a language model with its head.

    Attributes:
        hidden: width of a token.
        vocabulary: rows of the embedding and of the head.
        layers: first layer first.
        tied: whether the head is the embedding.
        longest: the most positions that the model supports, or None if the configuration does not say.
        own_vocabulary: rows of the embedding from which layers get inputs of their own; 0 for none.
    """

    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    tied: bool
    longest: int | None
    own_vocabulary: int = 0

    @property
    def own(self) -> int:
        """Width of the inputs that all layers get for each token beside its hidden states."""
        return sum(layer.own for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights of embedding, layers, norms and head, without biases."""
        layers = sum(layer.parameters(self.hidden) for layer in self.layers)
        layers += self.own * (self.hidden + self.own_vocabulary)
        norms = (2 * len(self.layers) + 1) * self.hidden
        return layers + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def prefill(self, lengths: Sequence[int], batch: int, size: int, last_alone: bool = False) -> CallPart:
        """Count the work of all layers on a prompt.

        Args:
            lengths: the tokens of a row in each layer.
            batch: rows.
            size: bytes of a number.
            last_alone: whether layers that make no keys run on the last token alone.
        """
        ops = self._embedding(batch * lengths[0], size)
        for (layer, tokens), times in Counter(zip(self.layers, lengths, strict=True)).items():
            if last_alone and isinstance(layer.mixer, Attention) and layer.mixer.borrowed:
                mixed, rows = layer.mixer.last(self.hidden, batch, tokens, size), batch
            else:
                mixed, rows = layer.mixer.prefill(self.hidden, batch, tokens, size), batch * tokens
            ops += repeated([*mixed, *self._rest(layer, rows, size)], times)
        ops.append(norm(batch * lengths[-1], self.hidden))
        return CallPart("prefill", tuple(ops))

    def decode(self, lengths: Sequence[int], steps: int, batch: int, size: int) -> CallPart:
        """Count the work on `steps` further tokens, one at a time; `lengths` are those of the prompt."""
        if not steps:
            return CallPart("decode", ())
        ops = [elementwise("embedding", batch * self.hidden, 2, size)]
        ops += repeated(self._own_inputs(batch, size), steps)
        for (layer, tokens), times in Counter(zip(self.layers, lengths, strict=True)).items():
            rest = repeated(self._rest(layer, batch, size), steps)
            ops += repeated([*layer.mixer.decode(self.hidden, batch, tokens, steps, size), *rest], times)
        ops += repeated([norm(batch, self.hidden)], steps)
        return CallPart("decode", tuple(ops))

    def _embedding(self, rows: int, size: int) -> list[Op]:
        return [elementwise("embedding", rows * self.hidden, 2, size), *self._own_inputs(rows, size)]

    def _own_inputs(self, rows: int, size: int) -> list[Op]:
        """Return the work of making what each layer gets beside its hidden states."""
        if not self.own:
            return []
        return [
            linear("inputs of layers", rows, self.hidden, self.own, size),
            norm(rows, self.own),
            elementwise("inputs of layers", rows * self.own, 4, size, launches=3),
        ]

    def _rest(self, layer: Layer, rows: int, size: int) -> list[Op]:
        own: list[Op] = []
        if layer.own:
            own = [
                linear("gate of its own input", rows, self.hidden, layer.own, size),
                elementwise("its own input", rows * layer.own, 5, size, launches=2),
                linear("out of its own input", rows, layer.own, self.hidden, size),
                norm(rows, self.hidden),
                elementwise("residual", rows * self.hidden, 3, size),
            ]
        return [
            *own,
            *layer.mlp.ops(rows, self.hidden, size),
            *repeated([norm(rows, self.hidden), elementwise("residual", rows * self.hidden, 3, size)], 2),
        ]

    def head(self, steps: int, batch: int, size: int, first: int = 1) -> CallPart:
        """Count the logits of one token per row, `steps` times; of `first` tokens in the first step."""
        one = [linear("logits", batch, self.hidden, self.vocabulary, size)]
        prompt = linear("logits", batch * first, self.hidden, self.vocabulary, size)
        return CallPart("head", (prompt, *repeated(one, steps - 1)))

    def cache(self, lengths: Sequence[int], batch: int, size: int) -> int:
        """Return the bytes of keys, values and states after `lengths` tokens of a row in each layer."""
        return batch * sum(layer.mixer.cache(n, size) for layer, n in zip(self.layers, lengths, strict=True))

    def activations(self, rows: int, size: int) -> int:
        """Estimate the peak bytes of activations in a layer on `rows` tokens.

        Those of the MLP, and six hidden states: residual, norms, and the embeddings of the prompt.
        """
        widest = max(layer.mlp.activation_width(self.hidden) for layer in set(self.layers))
        return rows * size * (widest + 6 * self.hidden)


def read_decoder(config: Any, tied: bool | None = None) -> DecoderShape:
    """Read the sizes of a decoder from its configuration.

    Args:
        config: the `text_config` of a vision-language model.
        tied: whether the head is the embedding; None reads it from `config`.

    Raises:
        FoveateError: a field is missing or makes no sense, or the decoder has parts that are not counted.
    """
    kind = str(getattr(config, "model_type", ""))
    for name, what in _UNCOUNTED.items():
        if getattr(config, name, None):
            raise FoveateError(f"{kind} has {what} ({name}), which the cost model does not count yet")
    count = read_number(config, "num_hidden_layers")
    types = getattr(config, "layer_types", None) or [_layer_type(config)] * count
    if len(types) != count:
        raise FoveateError(f"layer_types of {kind} names {len(types)} layers, and num_hidden_layers is {count}")
    longest = getattr(config, "max_position_embeddings", None)
    own = int(getattr(config, "hidden_size_per_layer_input", 0) or 0)
    return DecoderShape(
        hidden=read_number(config, "hidden_size"),
        vocabulary=read_number(config, "vocab_size"),
        layers=tuple(Layer(_mixer(config, kind, types[i], i), _mlp(config, kind, i), own) for i in range(count)),
        tied=bool(getattr(config, "tie_word_embeddings", False) if tied is None else tied),
        longest=longest if isinstance(longest, int) else None,
        own_vocabulary=read_number(config, "vocab_size_per_layer_input") if own else 0,
    )


def _borrows(config: Any, index: int) -> bool:
    """Return whether a layer reads keys and values of an earlier one."""
    last = int(getattr(config, "num_kv_shared_layers", 0) or 0)
    return index >= read_number(config, "num_hidden_layers") - last


def _layer_type(config: Any) -> str:
    return "sliding_attention" if getattr(config, "sliding_window", None) is not None else "full_attention"


def _mixer(config: Any, kind: str, name: str, index: int) -> Attention | Delta | ShortConvolution:
    if name == "conv":
        return ShortConvolution(read_number(config, "hidden_size"), read_number(config, "conv_L_cache"))
    if name == "linear_attention":
        return Delta(
            keys=read_number(config, "linear_num_key_heads"),
            values=read_number(config, "linear_num_value_heads"),
            key=read_number(config, "linear_key_head_dim"),
            value=read_number(config, "linear_value_head_dim"),
            kernel=read_number(config, "linear_conv_kernel_dim"),
        )
    if name not in ("full_attention", "sliding_attention", "chunked_attention"):
        raise FoveateError(f"{kind} has layers of type {name}, which the cost model does not count yet")
    # Where layers differ in their heads, a configuration has one for each of them.
    own = getattr(config, "per_layer_config", None)
    config = config if own is None else own[index]
    hidden, heads = read_number(config, "hidden_size"), read_number(config, "num_attention_heads")
    groups = getattr(config, "num_key_value_heads", None)
    groups = heads if groups is None else read_number(config, "num_key_value_heads")
    if heads % groups:
        raise FoveateError(f"{heads} query heads of {kind} can't share {groups} key heads evenly")
    turned = bool((getattr(config, "no_rope_layers", None) or [1] * (index + 1))[index])
    head = getattr(config, "head_dim", None)
    if head is None and hidden % heads:
        raise FoveateError(f"{kind} has no head_dim, and hidden_size {hidden} is no multiple of {heads} heads")
    return Attention(
        heads=heads,
        groups=groups,
        head=hidden // heads if head is None else read_number(config, "head_dim"),
        window=read_number(config, "sliding_window") if name == "sliding_attention" else None,
        chunk=read_number(config, "attention_chunk_size") if name == "chunked_attention" else None,
        gated=kind in _GATED_QUERIES,
        normed=kind in _QUERY_NORMS or (kind == "llama4_text" and config.use_qk_norm and turned),
        tied=bool(getattr(config, "attention_k_eq_v", False)) and name == "full_attention",
        borrowed=_borrows(config, index),
    )


def _adjusted(config: Any, width: int) -> int:
    """Return the width of an MLP whose configuration gives that of one without a gate, and what to round up to."""
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return width
    width, multiple = 2 * width // 3, read_number(config, "block_multiple_of")
    if (factor := getattr(config, "block_ffn_dim_multiplier", None)) is None:
        return width
    return -(-int(factor * width) // multiple) * multiple


def _mlp(config: Any, kind: str, index: int) -> Mlp | Experts | Both:
    experts = next((n for n in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, n, 0)), None)
    beside = getattr(config, "enable_moe_block", None)
    if experts is None or beside is not None or _dense_layer(config, index):
        width = _adjusted(
            config, read_number(config, "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner")
        )
        if getattr(config, "use_double_wide_mlp", False) and _borrows(config, index):
            width *= 2
        plain = Mlp(width, gated=kind not in _PLAIN_MLP)
        return plain if experts is None or not beside else Both(plain, _experts(config, experts))
    return _experts(config, experts)


def _experts(config: Any, experts: str) -> Experts:
    width = read_number(config, "moe_intermediate_size", "intermediate_size")
    shared = getattr(config, "shared_expert_intermediate_size", None)
    several = getattr(config, "n_shared_experts", None)
    count, every = read_number(config, experts), str(getattr(config, "model_type", "")) in _ALL_EXPERTS
    several = 1 if every else several
    return Experts(
        count=count,
        active=count if every else read_number(config, "num_experts_per_tok", "top_k_experts"),
        width=width,
        shared=int(shared or (several or 0) * width),
        shared_gate=bool(shared),
    )


def _dense_layer(config: Any, index: int) -> bool:
    """Return whether a layer of a decoder with experts has a plain MLP."""
    if (layers := getattr(config, "moe_layers", None)) is not None and not isinstance(layers, int):
        return index not in layers
    step = getattr(config, "decoder_sparse_step", None) or 1
    first = getattr(config, "first_k_dense_replace", None) or 0
    return index in (getattr(config, "mlp_only_layers", None) or ()) or (index + 1) % step != 0 or index < first


def _visible(tokens: int, window: int | None) -> int:
    """Count the pairs of query and key that a causal mask and a window allow."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def _visible_in_chunks(tokens: int, chunk: int) -> int:
    """Count the pairs of query and key that a causal mask and chunks allow.

    >>> _visible_in_chunks(5, 3)
    9
    """
    whole, rest = divmod(tokens, chunk)
    return whole * chunk * (chunk + 1) // 2 + rest * (rest + 1) // 2
