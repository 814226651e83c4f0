"""What a cache remembers of the prompt it holds a shortened form of.

The state lives on the cache object itself. So two conversations never mix, a copy of a cache carries its own state
along, a cache that is freed takes its state with it, and a cache filled under one `apply` goes on under the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.engine.cut import take_columns
from foveate.errors import FoveateError

_ATTRIBUTE = "foveate_state"


@dataclass(frozen=True)
class CacheState:
    """The compressed beginning of a conversation; what follows it is uncompressed and known from the cache's length.

    Attributes:
        columns: `(B, P)` int64, the column of the whole prompt that each cached place holds; -1 = padding made here.
        logical: the length of the whole prompt that those columns come from.
        following: `(B,)` int64, the position id of the first token behind it.
        padded: whether some column is -1.
    """

    columns: Tensor
    logical: int
    following: Tensor
    padded: bool

    @property
    def length(self) -> int:
        """How many places of the cache the compressed beginning takes."""
        return self.columns.shape[1]

    def rows(self, batch: int) -> CacheState:
        """The same state for a cache whose rows were repeated, each row beside its copies.

        Raises:
            FoveateError: the batch is no multiple of the cache's rows.
        """
        held = self.columns.shape[0]
        if batch == held:
            return self
        if batch % held:
            raise FoveateError(
                f"the cache holds {held} compressed conversations and the call has {batch} rows; repeat its rows "
                "with cache.batch_repeat_interleave, or start from the prompt again"
            )
        return CacheState(
            self.columns.repeat_interleave(batch // held, dim=0),
            self.logical,
            self.following.repeat_interleave(batch // held, dim=0),
            self.padded,
        )

    def mask(self, whole: Tensor | None, tail: int, batch: int) -> Tensor:
        """The attention mask over the cache and `tail` more columns: `(B, P + tail)` int64.

        `whole` is the caller's mask over the whole prompt, `(B, >= logical + tail)`, or None for all ones.
        """
        if whole is None:
            head = (self.columns >= 0).long()
            return torch.cat([head, head.new_ones(batch, tail)], dim=1)
        whole = whole.to(torch.int64)
        return torch.cat([take_columns(whole, self.columns, 0), whole[:, self.logical : self.logical + tail]], dim=1)

    def grown(self, tail: int, columns: Tensor | None = None) -> Tensor:
        """The columns with `tail` plain ones behind them, and then `columns`, which count from behind those."""
        device = self.columns.device
        plain = torch.arange(self.logical, self.logical + tail, device=device).expand(self.columns.shape[0], -1)
        parts = [self.columns, plain]
        if columns is not None:
            parts.append(torch.where(columns < 0, columns, columns + self.logical + tail))
        return torch.cat(parts, dim=1)


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
        if hasattr(cache, _ATTRIBUTE):
            delattr(cache, _ATTRIBUTE)
    else:
        setattr(cache, _ATTRIBUTE, state)
