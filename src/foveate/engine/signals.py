"""Answer what methods ask of the decoder: attention of chosen rows, logits, keys and hidden states of one layer.

The model is never asked for its attention maps, which would make it slow. Queries and keys of a layer that has run were
recorded while it ran, or its keys are in the cache; those of a layer that is about to run are computed by its own
modules from its input, for the wanted rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.engine.visibility import Visibility
from foveate.errors import SignalError
from foveate.families import Family
from foveate.precision import without_autocast
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
from foveate.transformers_api import cached_keys

_ELEMENTS_AT_ONCE = 2**25
"""Attention scores that are held at a time."""


@dataclass(frozen=True)
class ImageColumns:
    """Where the images of a batch and the text of their prompts stand, on the model's device.

    Attributes:
        rows: `(G,)` int64, the row of each image.
        visual: `(G, N)` int64, the columns of its tokens.
        text: `(G, T)` int64, the columns of its prompt's text.
        last: `(G,)` int64, the column of its prompt's last token.
    """

    rows: Tensor
    visual: Tensor
    text: Tensor
    last: Tensor

    @classmethod
    def joined(cls, parts: Sequence[ImageColumns]) -> ImageColumns:
        """Join batches whose images have equally many tokens and equally long texts."""
        names = ("rows", "visual", "text", "last")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class LayerInput:
    """What one decoder layer reads, and how queries and keys are made of it.

    Attributes:
        family: of the model.
        layer: which one.
        hidden: `(B, M, D)`, its input.
        rotary: cosines and sines, each `(B or 1, M, d)`.
        mask: `(B, P + M)`, 0 at padding, over what its cache held before and the M columns.
        cache: of the conversation, or None.
        gate: `(B, P + M)` float32, added to the logits of each key: 0, and lower where a column is on its way out; None
            if all of them are 0.
        visibility: what its columns see, where that is not simply all earlier ones.
        query_factor: `(B, M)`, what queries are multiplied by after rotary embedding; None for nothing.
        recorded: what the layer's `decoder_projections` made while it ran, each `(B, M, ...)`; empty before. Wrappers
            that shard weights may have taken them away after that.
    """

    family: Family
    layer: int
    hidden: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor
    cache: Any
    gate: Tensor | None = None
    visibility: Visibility | None = None
    query_factor: Tensor | None = None
    recorded: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, places: ImageColumns, columns: Tensor) -> Tensor:
        """Return hidden states `(G, R, D)` at columns `(G, R)` of the images' rows."""
        return self.hidden[places.rows[:, None], columns]

    def tables(self, places: ImageColumns, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `(G, R, d)` at columns `(G, R)` of the images' rows."""
        cos, sin = (each.expand(self.hidden.shape[0], -1, -1)[places.rows[:, None], columns] for each in self.rotary)
        return cos, sin

    def queries(self, places: ImageColumns, columns: Tensor) -> Tensor:
        """Return queries `(G, R, H, d)` at columns `(G, R)`."""
        tables = self.tables(places, columns)
        if "queries" in self.recorded:
            queries = self.family.rotated(self.layer, self._recorded("queries", places, columns), tables)
        else:
            queries = self.family.queries(self.layer, self.rows(places, columns), tables)
        if self.query_factor is None:
            return queries
        factor = self.query_factor.expand(self.hidden.shape[0], -1).to(queries)
        return queries * factor[places.rows[:, None], columns][..., None, None]

    def keys(self, places: ImageColumns, columns: Tensor) -> Tensor:
        """Return keys `(G, R, H_keys, d)` at columns `(G, R)`: the cache's, if the layer has run already."""
        cached = self._cached()
        whole, width = self.mask.shape[1], self.hidden.shape[1]
        if cached is not None and cached.shape[-2] == whole == int(self.cache.get_seq_length(self.layer)):
            return cached[places.rows[:, None], :, columns + whole - width].to(self.hidden.device)
        tables = self.tables(places, columns)
        if "keys" in self.recorded:
            return self.family.rotated(self.layer, self._recorded("keys", places, columns), tables)
        return self.family.keys(self.layer, self.rows(places, columns), tables)

    def all_keys(self, places: ImageColumns) -> Tensor:
        """Return the keys that the images' rows can see: `(G, H_keys, P + M, d)`.

        Raises:
            SignalError: the cache can't give them back.
        """
        width, whole = self.hidden.shape[1], self.mask.shape[1]
        past = self._cached()
        if past is not None and past.shape[-2] != int(self.cache.get_seq_length(self.layer)):
            if width < whole:
                raise SignalError(
                    "keys that a cache has quantised, or that a sliding window has dropped, can't be read again; "
                    "use a plain dynamic cache, and a conversation shorter than the window"
                )
            # All columns are new, so every key can be recomputed.
            past = None
        if past is not None:
            past = past.to(self.hidden.device)[places.rows]
            if past.shape[-2] == whole:
                # The layer has run: its own keys are in the cache, too.
                return past
        every = torch.arange(width, device=self.hidden.device).expand(places.rows.shape[0], -1)
        new = self.keys(places, every).transpose(1, 2)
        return new if past is None else torch.cat([past, new], dim=2)

    def _recorded(self, name: str, places: ImageColumns, columns: Tensor) -> Tensor:
        """Return what was recorded, `(G, R, H d)`, at columns `(G, R)` of the images' rows."""
        every = self.recorded[name].reshape(*self.hidden.shape[:2], -1)
        return every[places.rows[:, None], columns]

    def _cached(self) -> Tensor | None:
        """Return the keys that the cache holds of the layer, `(B, H_keys, P or P + M, d)`; None if there are none."""
        return cached_keys(self.cache, self.layer)


def attention(given: LayerInput, places: ImageColumns, columns: Tensor) -> Tensor:
    """Return the attention that rows at `columns` `(G, R)` give the images' tokens: `(G, H, R, N)` float32."""
    query, key = given.queries(places, columns), given.all_keys(places)
    with without_autocast(query.device):
        return _attention(given, places, columns, *_of_one_dtype(query, key))


def _of_one_dtype(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys in the wider of their dtypes, which differ where autocast made one of them."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    return query.to(dtype), key.to(dtype)


def _attention(given: LayerInput, places: ImageColumns, columns: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Score queries `(G, R, H, d)` against keys `(G, H_keys, P + M, d)`; see `attention`."""
    family, layer = given.family, given.layer
    images, count, heads, width = query.shape
    groups = key.shape[1]
    query = query.view(images, count, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
    past = given.mask.shape[1] - given.hidden.shape[1]
    seen = given.mask[places.rows].bool()
    columns_of_keys = torch.arange(given.mask.shape[1], device=columns.device) - past
    visual = (places.visual + past)[:, None, None, None].expand(-1, groups, heads // groups, 1, -1)
    sinks = family.attention_sinks(layer)
    if sinks is not None:
        sinks = sinks.detach().to(query).view(groups, heads // groups, 1, 1)
    parts: list[Tensor] = []
    step = max(1, _ELEMENTS_AT_ONCE // max(1, images * heads * key.shape[2]))
    for begin in range(0, count, step):
        block, at = query[:, :, :, begin : begin + step], columns[:, begin : begin + step]
        # Half precision may not hold scores before they are scaled.
        scores = torch.einsum("gkqrd,gknd->gkqrn", block * family.attention_scale(layer), key)
        if family.soft_cap is not None:
            scores = torch.tanh(scores / family.soft_cap) * family.soft_cap
        if given.gate is not None:
            scores = scores + given.gate[places.rows, None, None, None].to(scores.dtype)
        if given.visibility is None:
            allowed = columns_of_keys <= at[..., None]
        else:
            allowed = given.visibility.seen_by(places.rows, at + past)
        visible = seen[:, None] & allowed
        scores = scores.masked_fill(~visible[:, None, None], torch.finfo(scores.dtype).min)
        if sinks is not None:
            scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
        scores = scores.softmax(dim=-1, dtype=torch.float32)
        parts.append(scores.gather(-1, visual.expand(-1, -1, -1, scores.shape[3], -1)).flatten(1, 2))
    return torch.cat(parts, dim=2)


def logits_received(query: Tensor, key: Tensor, scale: float, weight: Tensor | None = None) -> Tensor:
    """Return the mean pre-softmax logit that each token gets from itself and later ones, averaged over heads.

    A mean of logits is linear in the queries, so they are summed first: the cost grows with N, not with its square.

    Args:
        query: `(G, N, H, d)`.
        key: `(G, N, H_keys, d)`.
        scale: of the logits.
        weight: `(G, N)` float32, how much each query counts in the mean; None for all alike.

    Returns:
        `(G, N)` float32.
    """
    images, count, heads, width = query.shape
    weight = torch.ones(images, count, device=query.device) if weight is None else weight
    behind = (query.float() * weight[..., None, None]).flip(1).cumsum(dim=1).flip(1)
    behind = behind / weight.flip(1).cumsum(dim=1).flip(1).clamp(min=1e-6)[..., None, None]
    grouped = behind.view(images, count, key.shape[2], heads // key.shape[2], width)
    return torch.einsum("gnkqd,gnkd->gn", grouped, key.float()) * (scale / heads)


def answer(
    signal: Signal,
    places: ImageColumns,
    here: LayerInput,
    previous: LayerInput | None,
    embedded: tuple[Tensor, ImageColumns] | None,
) -> Tensor:
    """Answer one signal for a batch of images.

    Args:
        signal: what is asked for.
        places: where the images stand now.
        here: the layer whose input is compressed.
        previous: the layer before it, if it was watched.
        embedded: what entered the decoder, `(B, M_0, D)`, and where the images stood there, if it was watched.

    Raises:
        SignalError: the decoder doesn't answer such requests.
    """
    given = here
    if getattr(signal, "layer", "here") == "previous":
        assert previous is not None
        given = previous
    if isinstance(signal, Text):
        return here.rows(places, places.text)
    if isinstance(signal, DecoderAttention):
        rows = places.last[:, None] if signal.rows == "last" else places.text
        scores = attention(given, places, rows)
        scores = scores.mean(dim=1) if signal.heads == "mean" else scores
        return scores.squeeze(-2) if signal.rows == "last" else scores
    if isinstance(signal, DecoderLogits):
        query, key = given.queries(places, places.visual), given.keys(places, places.visual)
        weight = None
        if given.gate is not None:
            past = given.mask.shape[1] - given.hidden.shape[1]
            weight = given.gate[places.rows[:, None], places.visual + past].exp()
        with without_autocast(query.device):
            return logits_received(query, key, given.family.attention_scale(given.layer), weight)
    if isinstance(signal, DecoderKeys):
        return given.keys(places, places.visual if signal.of == "visual" else places.text).flatten(2)
    if isinstance(signal, DecoderInput):
        assert embedded is not None
        hidden, then = embedded
        return hidden[then.rows[:, None], then.visual if signal.of == "visual" else then.text]
    if isinstance(signal, RotaryLogits):
        query, key = (
            given.family.rotate(
                given.layer, torch.ones_like(tables[0], dtype=torch.float32), *(each.float() for each in tables)
            )
            for tables in (here.tables(places, places.text), here.tables(places, places.visual))
        )
        with without_autocast(query.device):
            return query @ key.transpose(1, 2) * given.family.attention_scale(given.layer)
    if isinstance(signal, Behind):
        return places.text > places.visual[:, :1]
    raise SignalError(f"{signal} is no signal of a decoder layer")


def reads_text(signal: Signal) -> bool:
    """Return whether an answer has an axis of the prompt's text tokens."""
    if isinstance(signal, DecoderAttention):
        return signal.rows == "text"
    if isinstance(signal, DecoderKeys | DecoderInput):
        return signal.of == "text"
    return isinstance(signal, Text | RotaryLogits | Behind)


def read_after_running(signals: Sequence[Signal], layer: int) -> set[int]:
    """Return the layers whose queries and keys must be recorded for a step at `layer` that asks for these signals."""
    return {layer - 1} if any(getattr(signal, "layer", None) == "previous" for signal in signals) else set()


def watched(signals: Sequence[Signal], layer: int) -> set[int]:
    """Return the layers whose input must be kept for a step at `layer` that asks for these signals."""
    at_start = {0} if any(isinstance(signal, DecoderInput) for signal in signals) else set[int]()
    return at_start | read_after_running(signals, layer)
