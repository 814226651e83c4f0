"""Which columns a decoder layer lets each column see, where that is not simply all earlier ones.

Layers may see a window or a chunk of columns, and the tokens of an image may see each other in both directions. What is
left of a prompt inside the decoder keeps what the model lets it see at layer 0: two columns that are left see each
other there if they would before a step. So distances count the columns of layer 0, however many are gone in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families import Family

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""Tells whether a row (batch, head, query, key) may see; transformers calls it with indices of any shape."""


@dataclass(frozen=True)
class Visibility:
    """What the columns of a layer see beyond, or less than, all earlier ones.

    Attributes:
        places: `(B, K)` int64, for each column that the layer holds, and then each new one, its place in layer 0.
        window: how many columns of layer 0 a column sees, itself among them; None for all.
        chunk: the length of chunks of layer 0, beyond whose borders nothing is seen; None for none.
        starts: `(B,)` int64, where the first chunk begins.
        blocks: `(B, K)` int64, the block of columns that see each other, -1 for none; None if there are none.
        blocks_end_at_windows: whether columns of one block see each other only inside their windows.
    """

    places: Tensor
    window: int | None = None
    chunk: int | None = None
    starts: Tensor | None = None
    blocks: Tensor | None = None
    blocks_end_at_windows: bool = True

    @property
    def beyond(self) -> MaskFunction | None:
        """What is seen beside earlier columns; None for nothing."""
        return None if self.blocks is None else self._in_block

    @property
    def within(self) -> MaskFunction | None:
        """What is seen at most; None for everything."""
        return None if self.window is None and self.chunk is None else self._near

    def _in_block(self, row: Any, head: Any, query: Any, key: Any) -> Any:
        assert self.blocks is not None
        block = self.blocks[row, query]
        return (block == self.blocks[row, key]) & (block >= 0)

    def _near(self, row: Any, head: Any, query: Any, key: Any) -> Any:
        seeing, seen = self.places[row, query], self.places[row, key]
        near = seen == seen
        if self.window is not None:
            near = near & (seen > seeing - self.window)
        if self.chunk is not None:
            begin = 0 if self.starts is None else self.starts[row]
            near = near & ((seen - begin) // self.chunk == (seeing - begin) // self.chunk)
        if self.blocks is not None and not self.blocks_end_at_windows:
            near = near | self._in_block(row, head, query, key)
        return near

    def seen_by(self, rows: Tensor, queries: Tensor) -> Tensor:
        """Return what columns `queries` `(G, R)` of the batch's `rows` `(G,)` see: `(G, R, K)` bool."""
        every = torch.arange(self.places.shape[1], device=queries.device)
        row, query = rows[:, None, None], queries[..., None]
        seen = every <= query
        if self.beyond is not None:
            seen = seen | self.beyond(row, 0, query, every)
        return seen if self.within is None else seen & self.within(row, 0, query, every)


def visibility(
    family: Family, layer: int, places: Tensor, width: int, starts: Tensor | None, blocks: Tensor | None
) -> Visibility | None:
    """Return what a layer's columns see; None where each sees all earlier ones.

    Args:
        family: of the model.
        layer: of the decoder.
        places: as in `Visibility`.
        width: columns of layer 0, new ones included.
        starts: `(B,)` int64, the first column of layer 0 that is no padding; None for 0.
        blocks: as in `Visibility`, of layers that have blocks.
    """
    kind = family.layer_kinds()[layer]
    window = family.window if kind == "sliding_attention" else None
    chunk = family.chunk if kind == "chunked_attention" else None
    if kind not in family.block_layers:
        blocks = None
    window, chunk = (None if length is None or width <= length else length for length in (window, chunk))
    if window is None and chunk is None and blocks is None:
        return None
    return Visibility(places, window, chunk, starts, blocks, family.blocks_end_at_windows)


def places_among(first: Tensor, columns: Tensor) -> Tensor:
    """Return the place of each of `columns` `(B, K)` among `first` `(B, F)`, which ascends and has all of them.

    -1 is padding, and lands anywhere.

    >>> places_among(torch.tensor([[-1, 0, 3, 4]]), torch.tensor([[0, 4]]))
    tensor([[1, 3]])
    """
    return torch.searchsorted(first.contiguous(), columns.contiguous()).clamp(max=first.shape[1] - 1)
