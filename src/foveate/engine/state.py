"""What a cache holds of a compressed conversation; and all state that foveate keeps on objects which are not its own.

On a cache (`caches.py`):
    `foveate_state`: what it holds. Set after each call, read before the next; dies with the cache, or when emptied.
    `foveate_in_call`: whether a call that knows this state is under way. Set before a call, taken away after it.
    `foveate_plain`: that it was looked at once, and holds no compressed prompt.
    its class: one that moves the state along and refuses other calls; its own again when the state dies.
On a container of features (`containers.py`):
    `foveate_images`: what its images are. Set by the encoder's hooks or by `encoder_outputs`, read before the core;
    dies with the container.
On a module:
    a method that `hooks.on_call` listens to, replaced until the last listener is removed.
On the core:
    what its own calls leave behind (`family.memories`), put back as it was when `apply` ends.

Beside these, `apply.py` knows which models an `apply` is open on, and each kind of hooks keeps the running call of a
thread in a thread-local of its own.

State on the cache object means that two conversations never mix, a copy of a cache carries its own state along, and a
cache filled under one `apply` goes on under the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.engine.columns import take_columns
from foveate.errors import FoveateError


@dataclass(frozen=True)
class LayerState:
    """What the decoder's layers from `layer` on hold of the compressed beginning of a conversation.

    Attributes:
        layer: the first of these layers.
        columns: `(B, P)` int64, the column of the full prompt that each cached place holds; -1 = padding made here.
        following: `(B,)` int64, the position id of the first token after it in these layers.
        padded: whether some column is -1.
        packed: whether position ids in these layers differ from those in layer 0.
    """

    layer: int
    columns: Tensor
    following: Tensor
    padded: bool
    packed: bool = False

    @property
    def length(self) -> int:
        """Return how many places of these layers' cache the compressed beginning takes."""
        return self.columns.shape[1]

    def repeated(self, times: int) -> LayerState:
        """Return the same for rows that were repeated, each next to its copies."""
        columns, following = (each.repeat_interleave(times, dim=0) for each in (self.columns, self.following))
        return replace(self, columns=columns, following=following)

    def picked(self, rows: Tensor) -> LayerState:
        """Return the same for the rows of these numbers, `(B',)` int64, or where `(B,)` bool is true."""
        return replace(self, columns=self.columns[rows], following=self.following[rows])

    def mask(self, full_mask: Tensor | None, full_length: int, tail: int) -> Tensor:
        """Return the attention mask over what is held and `tail` more columns: `(B, P + tail)` int64.

        Args:
            full_mask: the caller's mask over the full conversation, `(B, >= full_length + tail)`; None for all ones.
            full_length: columns of the full prompt that is held in a shorter form.
            tail: plain columns after it.
        """
        if full_mask is None:
            head = (self.columns >= 0).long()
            return torch.cat([head, head.new_ones(head.shape[0], tail)], dim=1)
        full_mask = full_mask.to(torch.int64)
        plain = full_mask[:, full_length : full_length + tail]
        return torch.cat([take_columns(full_mask, self.columns, 0), plain], dim=1)

    def extended(self, full_length: int, tail: int, columns: Tensor | None = None) -> Tensor:
        """Return the columns, then `tail` plain ones, then `columns`, which count from after those."""
        plain = torch.arange(full_length, full_length + tail, device=self.columns.device)
        parts = [self.columns, plain.expand(self.columns.shape[0], -1)]
        if columns is not None:
            parts.append(torch.where(columns < 0, columns, columns + full_length + tail))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class CacheState:
    """The compressed beginning of a conversation; what follows it is plain and known from the cache's length.

    Attributes:
        full_length: columns of the full prompt that is held in a shorter form.
        layers: what the layers hold: the first entry from layer 0 on, each later one from a deeper layer on.
        text: `()` int64 on the device, how many columns at the end are text in every row; None for none.
    """

    full_length: int
    layers: tuple[LayerState, ...]
    text: Tensor | None = None

    @property
    def first(self) -> LayerState:
        """Return what layer 0 holds."""
        return self.layers[0]

    def at(self, layer: int) -> LayerState:
        """Return what a layer holds."""
        return next(state for state in reversed(self.layers) if state.layer <= layer)

    def rows(self, batch: int) -> CacheState:
        """Return the same state for a cache whose rows were repeated, each row next to its copies.

        Raises:
            FoveateError: the batch is no multiple of the cache's rows.
        """
        rows = self.first.columns.shape[0]
        if batch == rows:
            return self
        if batch % rows:
            raise FoveateError(
                f"the cache holds {rows} compressed conversations and the call has {batch} rows; repeat its rows with "
                "cache.batch_repeat_interleave or take some with cache.batch_select_indices, or start from the prompt "
                "again"
            )
        return replace(self, layers=tuple(state.repeated(batch // rows) for state in self.layers))

    def cropped(self, count: int) -> CacheState:
        """Return the same without its last `count` columns, for a cache that was cropped into its beginning.

        Raises:
            FoveateError: something other than text is among them.
        """
        length = self.full_length - count
        ends = torch.arange(length, self.full_length, device=self.first.columns.device)
        text = self.text is not None and int(self.text) >= count
        if not text or not bool((self.first.columns[:, -count:] == ends).all()):
            raise FoveateError(
                "the cache was cropped into its compressed prompt; crop only what came after it, or start again"
            )
        layers = tuple(
            replace(each, columns=each.columns[:, :-count], following=each.following - count) for each in self.layers
        )
        assert self.text is not None
        return CacheState(length, layers, self.text - count)


@dataclass(frozen=True)
class CachedPrefix:
    """What a cache holds before a call.

    Attributes:
        state: the compressed beginning, with the call's rows; None if nothing was compressed.
        cached: columns that layer 0 of the cache holds.
        tail: plain columns after the compressed beginning.
    """

    state: CacheState | None
    cached: int
    tail: int = 0

    @property
    def full_length(self) -> int:
        """Return the columns of the full conversation; 0 if nothing was compressed."""
        return 0 if self.state is None else self.state.full_length + self.tail
