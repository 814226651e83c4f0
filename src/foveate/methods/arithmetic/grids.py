"""Fit coarser grids into a budget, assign tokens to their cells, and average these."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64

from foveate.errors import KeepError
from foveate.plan import AVERAGED, POOLED, Plan
from foveate.tokens import Keep, Layout, Segment, VisualTokens, spread

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


@functools.lru_cache(maxsize=1024)
def fit(height: int, width: int, budget: int) -> tuple[int, int]:
    """Return the largest grid of at most `budget` cells whose sides are both within one of the exact proportion.

    Of equally large grids the one closest to the aspect ratio of the image wins; of equally close ones, the wider.

    >>> fit(24, 24, 64), fit(24, 24, 288), fit(6, 6, 6), fit(3, 40, 10)
    ((8, 8), (16, 17), (2, 3), (1, 10))
    """
    scale = math.sqrt(budget / (height * width))
    rows = {max(1, min(height, math.floor(height * scale) + extra)) for extra in (0, 1)}
    columns = {max(1, min(width, math.floor(width * scale) + extra)) for extra in (0, 1)}
    if 1 in rows:
        columns.add(min(width, budget))
    if 1 in columns:
        rows.add(min(height, budget))
    options = [(h, w) for h, w in itertools.product(rows, columns) if h * w <= budget]
    shape = math.log(height / width)
    return max(
        options, key=lambda grid: (grid[0] * grid[1], -round(abs(math.log(grid[0] / grid[1]) - shape), 9), grid[1])
    )


@functools.lru_cache(maxsize=1024)
def fit_clip(frames: int, height: int, width: int, budget: int) -> tuple[int, int, int]:
    """Return the largest grid of at most `budget` cells in time and space, of about the clip's proportions.

    The frames of the grid are within one of the exact proportion, unless a frame is down to one cell. Of equally large
    grids the one closest to that proportion wins; of equally close ones, the one with more frames.

    >>> fit_clip(8, 24, 24, 576), fit_clip(1, 24, 24, 64), fit_clip(8, 4, 4, 1), fit_clip(8, 1, 1, 5)
    ((4, 12, 12), (1, 8, 8), (1, 1, 1), (5, 1, 1))
    """
    exact = frames * (budget / (frames * height * width)) ** (1 / 3)
    counts = {max(1, min(frames, budget, math.floor(exact) + extra)) for extra in (0, 1)}
    options = [(count, *fit(height, width, budget // count)) for count in counts]
    if any(h * w == 1 for _, h, w in options):
        options.append((min(frames, budget), *fit(height, width, max(1, budget // frames))))
    return max(options, key=lambda grid: (math.prod(grid), -round(abs(math.log(grid[0] / exact)), 9), grid[0]))


def grids(layout: Layout, keep: Keep, between_frames: bool = False) -> list[tuple[int, int, int]]:
    """Return the kept grid `(t, h, w)` of each segment; segments share the budget by size.

    If the budget is smaller than the number of segments, nothing remains of the last ones: `(0, 0, 0)`. The whole image
    comes before its tiles, wherever it stands.

    >>> from foveate.tokens import Segment
    >>> tiles = Layout((Segment(1, 4, 4), Segment(1, 8, 8)))
    >>> grids(tiles, Keep.of(20)), grids(tiles, Keep.of(1))
    ([(1, 2, 2), (1, 4, 4)], [(1, 1, 1), (0, 0, 0)])

    Args:
        layout: of the image or clip.
        keep: the budget.
        between_frames: whether the grid is coarser in time, too. Otherwise each frame has a grid of its own.

    Raises:
        KeepError: the budget is larger than the number of tokens, or frames that stay separate are more than it.
    """
    budget = keep.count(layout.content)
    first = sorted(range(len(layout.segments)), key=lambda number: number != layout.whole)
    held = sorted(first[:budget])
    shares = spread(budget, [layout.segments[number].count for number in held])
    kept = [(0, 0, 0)] * len(layout.segments)
    for number, share in zip(held, shares):
        segment = layout.segments[number]
        if between_frames:
            kept[number] = fit_clip(segment.t, segment.h, segment.w, share)
            continue
        if share < segment.t:
            raise KeepError(
                f"keep {keep} is {share} tokens of a clip of {segment.t} frames, and each frame keeps a grid of its "
                f"own; use pool3d or stride3d, or keep at least {segment.t}"
            )
        kept[number] = (segment.t, *fit(segment.h, segment.w, share // segment.t))
    return kept


def cells(layout: Layout, kept: list[tuple[int, int, int]]) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"]]:
    """Return the cell of each token, and the token in the middle of each cell.

    Returns:
        `(N,)` int64, -1 in segments of which nothing is kept; and `(M,)` int64, unique and ascending.
    """
    groups: list[Tensor] = []
    middles: list[Tensor] = []
    tokens = taken = 0
    for segment, (frames, height, width) in zip(layout.segments, kept):
        if not frames:
            groups.append(torch.full((segment.count,), -1))
            continue
        cell, middle = _cells(segment, frames, height, width)
        groups.append(torch.tensor(cell) + taken)
        middles.append(torch.tensor(middle) + tokens)
        tokens += segment.count
        taken += frames * height * width
    return torch.cat(groups), torch.cat(middles)


def averages(tokens: VisualTokens, kept: list[tuple[int, int, int]]) -> Plan:
    """Plan to average each cell of the kept grids, at the middle place of the cell.

    Args:
        tokens: to plan.
        kept: the grid `(t, h, w)` of each segment, as `grids` returns them.
    """
    group, middle = cells(tokens.layout, kept)
    images, device = tokens.features.shape[0], tokens.features.device
    slot = middle.to(device, non_blocking=True).expand(images, -1)
    group = group.to(device, non_blocking=True).expand(images, -1)
    if len(kept) == 1:
        (whole,), ((frames, height, width),) = tokens.layout.segments, kept
        if frames == whole.t and whole.h % height == whole.w % width == 0:
            return Plan.averaging(slot, group, (whole.h // height, whole.w // width), whole.w)
    return Plan(slot, group)


def averaging_operations(tokens: int, kept: int) -> int:
    """Estimate how many operations an accelerator starts to plan such averages of one image, and to apply them."""
    return 2 + (AVERAGED if tokens % kept else POOLED)


@functools.lru_cache(maxsize=256)
def _cells(whole: Segment, frames: int, height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the cell of each token of a segment, and each cell's middle token; don't change them in place."""
    frame, frame_middle = axis(whole.t, frames)
    row, row_middle = axis(whole.h, height)
    column, column_middle = axis(whole.w, width)
    cell = (frame[:, None, None] * height + row[:, None]) * width + column
    middle = (frame_middle[:, None, None] * whole.h + row_middle[:, None]) * whole.w + column_middle
    return cell.flatten(), middle.flatten()


def axis(size: int, parts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut an axis into equal parts; return the part of each place, and each part's middle place (the lower of two)."""
    part = np.arange(size) * parts // size
    first = -(-np.arange(parts + 1) * size // parts)
    return part, (first[:-1] + first[1:] - 1) // 2
