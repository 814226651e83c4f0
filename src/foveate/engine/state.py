"""What a cache remembers of the prompt it holds a shortened form of.

The state lives on the cache object itself. So two conversations never mix, a copy of a cache carries its own state
along, a cache that is freed takes its state with it, and a cache filled under one `apply` goes on under the next.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveate.engine.cut import take_columns
from foveate.errors import FoveateError

_ATTRIBUTE = "foveate_state"
_MOVES_ROWS = ("reorder_cache", "batch_select_indices")
"""What of a cache's methods moves its rows or takes some out; the state follows."""


@dataclass(frozen=True)
class Held:
    """What the decoder's layers from `layer` on hold of the compressed beginning of a conversation.

    Attributes:
        layer: the first of these layers.
        columns: `(B, P)` int64, the column of the whole prompt that each cached place holds; -1 = padding made here.
        following: `(B,)` int64, the position id of the first token behind it in these layers.
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
        """How many places of these layers' cache the compressed beginning takes."""
        return self.columns.shape[1]

    def repeated(self, times: int) -> Held:
        """The same for rows that were repeated, each beside its copies."""
        columns, following = (each.repeat_interleave(times, dim=0) for each in (self.columns, self.following))
        return replace(self, columns=columns, following=following)

    def picked(self, rows: Tensor) -> Held:
        """The same for the rows of these numbers, `(B',)` int64, or where `(B,)` bool is true."""
        return replace(self, columns=self.columns[rows], following=self.following[rows])

    def mask(self, whole: Tensor | None, logical: int, tail: int) -> Tensor:
        """The attention mask over what is held and `tail` more columns: `(B, P + tail)` int64.

        `whole` is the caller's mask over the whole prompt of `logical` columns and what follows,
        `(B, >= logical + tail)`, or None for all ones.
        """
        if whole is None:
            head = (self.columns >= 0).long()
            return torch.cat([head, head.new_ones(head.shape[0], tail)], dim=1)
        whole = whole.to(torch.int64)
        return torch.cat([take_columns(whole, self.columns, 0), whole[:, logical : logical + tail]], dim=1)

    def grown(self, logical: int, tail: int, columns: Tensor | None = None) -> Tensor:
        """The columns with `tail` plain ones behind them, and then `columns`, which count from behind those."""
        plain = torch.arange(logical, logical + tail, device=self.columns.device).expand(self.columns.shape[0], -1)
        parts = [self.columns, plain]
        if columns is not None:
            parts.append(torch.where(columns < 0, columns, columns + logical + tail))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class CacheState:
    """The compressed beginning of a conversation; what follows it is uncompressed and known from the cache's length.

    Attributes:
        logical: the length of the whole prompt that is held a shortened form of.
        held: what the layers hold: the first entry from layer 0 on, each later one from a deeper layer on.
        text: `()` int64 on the device, how many columns at the end are text in every row; None for none.
    """

    logical: int
    held: tuple[Held, ...]
    text: Tensor | None = None

    @property
    def first(self) -> Held:
        """What layer 0 holds."""
        return self.held[0]

    def at(self, layer: int) -> Held:
        """What a layer holds."""
        return next(held for held in reversed(self.held) if held.layer <= layer)

    def rows(self, batch: int) -> CacheState:
        """The same state for a cache whose rows were repeated, each row beside its copies.

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
        return replace(self, held=tuple(held.repeated(batch // rows) for held in self.held))

    def cropped(self, count: int) -> CacheState:
        """The same without its last `count` columns, for a cache that was cropped into the beginning it holds.

        Raises:
            FoveateError: there are other things than text among them.
        """
        left = self.logical - count
        ends = torch.arange(left, self.logical, device=self.first.columns.device)
        text = self.text is not None and int(self.text) >= count
        if not text or not bool((self.first.columns[:, -count:] == ends).all()):
            raise FoveateError(
                "the cache was cropped into its compressed prompt; crop only what came behind it, or start again"
            )
        held = tuple(
            replace(each, columns=each.columns[:, :-count], following=each.following - count) for each in self.held
        )
        assert self.text is not None
        return CacheState(left, held, self.text - count)


def state_of(cache: Any) -> CacheState | None:
    """The state of a cache; None for no cache, an emptied one, and one that never saw a compressed prompt."""
    state: CacheState | None = getattr(cache, _ATTRIBUTE, None)
    if state is not None and cache.get_seq_length() == 0:
        set_state(cache, None)
        return None
    return state


def set_state(cache: Any, state: CacheState | None) -> None:
    """Remember the state of a cache."""
    if state is None:
        for name in {_ATTRIBUTE, *_MOVES_ROWS} & vars(cache).keys():
            delattr(cache, name)
        return
    setattr(cache, _ATTRIBUTE, state)
    for name in _MOVES_ROWS:
        if name not in vars(cache) and hasattr(cache, name):
            setattr(cache, name, _RowsMoved(cache, name))


class _RowsMoved:
    """A cache's own method on its rows, behind which its state follows.

    The cache is held weakly, so that it goes, with all its keys, when its last user lets go of it.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = weakref.ref(cache), name

    def __reduce__(self) -> Any:
        # A copy of the cache has one of its own.
        return _RowsMoved, (self._cache(), self._name)

    def __call__(self, rows: Tensor) -> None:
        cache: Any = self._cache()
        state: CacheState | None = getattr(cache, _ATTRIBUTE, None)
        # Layers of linear attention hold no keys; a decoder has others, too.
        before = next(layer.keys.shape[0] for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor))
        getattr(type(cache), self._name)(cache, rows)
        if state is not None:
            state = state.rows(before)
            rows = rows.to(state.first.columns.device)
            set_state(cache, replace(state, held=tuple(held.picked(rows) for held in state.held)))
