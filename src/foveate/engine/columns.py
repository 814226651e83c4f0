"""The arithmetic of columns: which ones of a prompt are left, where they land, and which position ids they carry.

Nothing here knows a model, a layer or a method. What the host counts, it counts with NumPy, whose small operations take
a fraction of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.errors import FoveateError

Host = npt.NDArray[Any]
"""An array on the host."""


def take_columns(values: Tensor, columns: Tensor, fill: int) -> Tensor:
    """Take the value at each column, `fill` where the column is -1: `(B, S)` -> `(B, M)`.

    >>> take_columns(torch.tensor([[5, 6, 7]]), torch.tensor([[-1, 0, 2]]), 9)
    tensor([[9, 5, 7]])
    """
    taken = values.expand(columns.shape[0], -1).gather(1, columns.clamp(min=0))
    return taken.masked_fill(columns < 0, fill)


def left_padded(keep: Host) -> tuple[Host, bool]:
    """Move the kept columns of each row to its end, on the host.

    Args:
        keep: `(B, S)` bool.

    Returns:
        `(B, M)` int64, the column that each place holds, -1 at padding; and whether there is any padding.

    >>> columns, padded = left_padded(np.array([[True, False, True], [False, True, False]]))
    >>> columns.tolist(), padded
    ([[0, 2], [-1, 1]], True)
    """
    lengths = keep.sum(axis=1)
    longest = int(lengths.max())
    placed = np.full((keep.shape[0], longest), -1, dtype=np.int64)
    placed[np.arange(longest) >= longest - lengths[:, None]] = keep.nonzero()[1]
    return placed, bool((lengths != longest).any())


def standing_for(columns: Host, keep: Host) -> Host:
    """Return, for each column of the full prompt, the place that stands for it: `(B, S)` int64.

    The last kept column before a dropped one stands for it, so logits and labels keep their shape.

    Args:
        columns: `(B, M)` int64, the column that each place holds; -1 at padding.
        keep: `(B, S)` bool, the columns that are left.
    """
    padding = (columns < 0).sum(axis=1, keepdims=True)
    return (keep.cumsum(axis=1) - 1 + padding).clip(min=0)


def gather_columns(hidden: Tensor, places: Tensor) -> Tensor:
    """Take hidden states `(B, M, D)` at places `(B, S)`: `(B, S, D)`, wherever the places are."""
    rows, width, _ = hidden.shape
    places = places.to(hidden.device)
    flat = places
    if rows > 1:
        flat = places + torch.arange(0, rows * width, width, device=places.device)[:, None]
    return hidden.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, -1)


def text_positions(start: Tensor, count: int, valid: Tensor | None, axes: int) -> Tensor:
    """Return position ids of plain text that goes on from `start`: `(B, count)`, or `(axes, B, count)`.

    Args:
        start: `(B,)` int64, the position id of the first column.
        count: how many columns there are.
        valid: `(B, count)`, 0 at padding, which doesn't move positions on; None for no padding.
        axes: of the position ids; 1, or 3 with M-RoPE.
    """
    if valid is None:
        steps = torch.arange(count, device=start.device)[None]
    else:
        steps = (valid.long().cumsum(dim=1) - 1).clamp(min=0)
    positions = start[:, None] + steps
    return positions if axes == 1 else positions[None].expand(axes, -1, -1)


def per_axis(position_ids: Tensor, axes: int, rows: int) -> Tensor:
    """Bring a caller's position ids into the shape `(axes, B, S)`.

    With M-RoPE, transformers passes `(4, B, S)`: a row of text positions before the three axes.

    Raises:
        FoveateError: they have another shape.
    """
    if position_ids.ndim == 2:
        position_ids = position_ids[None].expand(axes, -1, -1)
    if position_ids.ndim != 3 or position_ids.shape[0] not in {axes, axes + 1 if axes == 3 else axes}:
        raise FoveateError(f"position_ids of shape {tuple(position_ids.shape)} don't fit a model with {axes} axes")
    return position_ids[-axes:].expand(-1, rows, -1).long()


@dataclass
class Columns:
    """The new columns of a call, as a group of decoder layers holds them.

    Attributes:
        index: `(B, M)` int64, the column of the call that each place holds; -1 at padding made here.
        lengths: how many places of each row hold a column; they are the row's last ones.
        restore: `(B, S)` int64, for each column of the call the place that stands for it.
        positions: `(axes, B, M)` int64, position ids, without what earlier turns have moved.
        following: `(B,)` int64, the position id of the next token, likewise.
        source: `(B, M)` int64, the place among layer 0's flattened columns that each one comes from; None for its own.
        packed: whether a step inside the decoder has moved positions.
    """

    index: Tensor
    lengths: list[int]
    restore: Tensor
    positions: Tensor
    following: Tensor
    source: Tensor | None = None
    packed: bool = False

    @property
    def padded(self) -> bool:
        """Whether rows of different length had to be padded."""
        return min(self.lengths) != self.index.shape[1]

    def occupied(self) -> Host:
        """Return which places hold a column: `(B, M)` bool, on the host."""
        width = self.index.shape[1]
        return np.arange(width) >= width - np.array(self.lengths)[:, None]

    def taken(self, index: Tensor, real: Tensor, landing: Tensor, lengths: list[int]) -> Columns:
        """Return the columns that a step leaves.

        Args:
            index: `(B, M')` int64, the flattened place that each new place takes its column from.
            real: `(B, M')` bool, False at padding.
            landing: `(B, M)` int64, the new place of each old one, or of the one before it that stands for it.
            lengths: as in the attributes, of the new rows.
        """
        return Columns(
            index=torch.where(real, self.index.flatten()[index], -1),
            lengths=lengths,
            restore=landing.gather(1, self.restore),
            positions=self.positions.flatten(1)[:, index],
            following=self.following,
            source=index if self.source is None else self.source.flatten()[index],
            packed=self.packed,
        )


@dataclass(frozen=True)
class Closing:
    """How the gaps close when some columns of a batch are dropped: rows end together again. All on the host.

    Attributes:
        lengths: `(B,)`, columns left in each row.
        landing: `(B, M)` int64, the new place of each column; of a dropped one, that of the kept one before it (it may
            be negative where there is none).
        source: `(B, M')` int64, the flattened old place that each new place takes its column from; padding takes its
            row's last one, which nobody reads.
        real: `(B, M')` bool, False at padding.
    """

    lengths: Host
    landing: Host
    source: Host
    real: Host

    @classmethod
    def of(cls, keep: Host) -> Closing:
        """Close the gaps that dropping leaves: `keep` `(B, M)` bool.

        >>> closing = Closing.of(np.array([[True, False, True], [False, True, False]]))
        >>> closing.source.tolist(), closing.real.tolist(), closing.landing.tolist()
        ([[0, 2], [5, 4]], [[True, True], [False, True]], [[0, 0, 1], [0, 1, 1]])
        """
        rows, width = keep.shape
        lengths = keep.sum(axis=1)
        narrow = int(lengths.max())
        padding = narrow - lengths
        landing = keep.cumsum(axis=1) - 1 + padding[:, None]
        real = np.arange(narrow) >= padding[:, None]
        source = np.repeat(np.arange(1, rows + 1) * width - 1, narrow).reshape(rows, narrow)
        source[real] = np.flatnonzero(keep)
        return cls(lengths, landing, source, real)


@dataclass(frozen=True)
class PackedRun:
    """What packing must know of one run of an image: where it stands, and how far it moves what follows it.

    Attributes:
        row: of the batch.
        places: `(n,)` int64, its places in the columns, ascending; empty if nothing is left of it.
        span: how far it moves the position of what follows it, so far.
        begin: `()` int64 on the device, the position id of its first place; None if it has none.
        end: if nothing is left of it, the place after its last one; None if it was gone before.
        complete: whether this step has left out nothing of its image, so that its positions move as a whole.
    """

    row: int
    places: Host
    span: int
    begin: Tensor | None
    end: int | None = None
    complete: bool = False


def pack_positions(columns: Columns, runs: Sequence[PackedRun]) -> tuple[Columns, list[PackedRun]]:
    """Give runs of images position ids without gaps, and move up what follows them. Complete ones have no gaps.

    Returns:
        The columns with new positions, and each run with its new span and begin.
    """
    device = columns.positions.device
    rows, width = columns.index.shape
    shift = np.zeros((rows, width + 1), dtype=np.int64)
    for run in runs:
        if run.complete:
            continue
        if len(run.places):
            shift[run.row, run.places[-1] + 1] += run.span - len(run.places)
        elif run.end is not None:
            shift[run.row, run.end] += run.span
    shift = shift.cumsum(axis=1)
    moved = on_device(shift, device)
    positions = columns.positions - moved[:, :-1]
    flat = positions.flatten(1)
    packed: list[PackedRun] = []
    for run in runs:
        if not len(run.places):
            packed.append(replace(run, span=0 if run.end is not None else run.span))
            continue
        if run.begin is None:
            packed.append(run)
            continue
        begin = run.begin - int(shift[run.row, run.places[0]])
        if run.complete:
            packed.append(replace(run, begin=begin))
            continue
        steps = begin + torch.arange(len(run.places), device=device)
        where = on_device(run.row * width + run.places, device)
        flat = flat.index_copy(1, where, steps.expand(flat.shape[0], -1))
        packed.append(replace(run, span=len(run.places), begin=begin))
    following = columns.following - moved[:, -1]
    return replace(columns, positions=flat.view_as(positions), following=following, packed=True), packed


def on_device(values: Host, device: torch.device) -> Tensor:
    """Move what the host has counted to the device that needs it; the host doesn't wait."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def together_on_device(values: Sequence[Host], device: torch.device) -> list[Tensor]:
    """Move arrays of int64 to a device in one copy; the host doesn't wait.

    >>> [each.tolist() for each in together_on_device([np.array([[1, 2]]), np.array(3)], torch.device("cpu"))]
    [[[1, 2]], 3]
    """
    flat = on_device(np.concatenate([each.ravel() for each in values]), device)
    parts = flat.split([each.size for each in values])
    return [part.view(each.shape) for part, each in zip(parts, values, strict=True)]
