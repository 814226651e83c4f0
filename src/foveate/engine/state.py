"""All state that foveate keeps on objects which are not its own, and who sets it, who reads it, when it dies.

On a cache:
    `foveate_state`: what it holds. Set after each call, read before the next; dies with the cache, or when emptied.
    `reorder_cache`, `batch_select_indices`: replaced by methods that move the state, too; they die with the state.
On an encoder's output:
    `foveate_capture`: what its layers saw. Set by the encoder's hooks, read before the core; dies with the output.
On a container of features:
    `foveate_encoded`: the images that `encoder_outputs` made it of. Read before the core; dies with the container.
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

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.engine.columns import take_columns
from foveate.errors import FoveateError
from foveate.transformers_api import cached_rows

if TYPE_CHECKING:
    from foveate.families import Capture

_CACHE_STATE = "foveate_state"
_CAPTURE = "foveate_capture"
_ENCODED = "foveate_encoded"
_MOVES_ROWS = ("reorder_cache", "batch_select_indices")
"""A cache's methods that move its rows or take some out; the state follows."""


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


def cache_state(cache: Any) -> CacheState | None:
    """Return the state of a cache; None for no cache, an emptied one, and one that never saw a compressed prompt."""
    state: CacheState | None = getattr(cache, _CACHE_STATE, None)
    if state is not None and cache.get_seq_length() == 0:
        set_cache_state(cache, None)
        return None
    return state


def set_cache_state(cache: Any, state: CacheState | None) -> None:
    """Set the state of a cache; None takes it away."""
    if state is None:
        for name in {_CACHE_STATE, *_MOVES_ROWS} & vars(cache).keys():
            delattr(cache, name)
        return
    setattr(cache, _CACHE_STATE, state)
    for name in _MOVES_ROWS:
        if name not in vars(cache) and hasattr(cache, name):
            setattr(cache, name, _RowMethod(cache, name))


class _RowMethod:
    """A cache's own method on its rows, after which the state follows.

    The cache is held weakly, so that it is freed, with all its keys, when its last user drops it.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = weakref.ref(cache), name

    def __reduce__(self) -> Any:
        # A copy of the cache has one of its own.
        return _RowMethod, (self._cache(), self._name)

    def __call__(self, rows: Tensor) -> None:
        cache: Any = self._cache()
        state: CacheState | None = getattr(cache, _CACHE_STATE, None)
        before = cached_rows(cache)
        getattr(type(cache), self._name)(cache, rows)
        if state is not None:
            state = state.rows(before)
            rows = rows.to(state.first.columns.device)
            set_cache_state(cache, replace(state, layers=tuple(layer.picked(rows) for layer in state.layers)))


# On what an encoder returns


def capture_of(output: Any) -> Capture | None:
    """Return what was captured while the encoder made this output; None if no hook was on it."""
    return getattr(output, _CAPTURE, None)


def mark_captured(output: Any, capture: Capture) -> None:
    """Keep with an encoder's output what was captured while it was made."""
    setattr(output, _CAPTURE, capture)


def encoded_of(output: Any) -> Any:
    """Return the `Encoded` images that `encoder_outputs` made this container of; None if the model made it."""
    return getattr(output, _ENCODED, None)


def mark_encoded(output: Any, encoded: Any) -> None:
    """Keep with a container of features the `Encoded` images that it was made of."""
    setattr(output, _ENCODED, encoded)
