"""The shape of one image's tokens: its grids, the tiles they were encoded in, newlines and separators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

T = TypeVar("T")


def remembered(make: Callable[[Layout], T]) -> Callable[[Layout], T]:
    """Make something of a layout once: plain tensors on the CPU, whatever mode the first call comes in.

    A tensor made in inference mode could never take part in training.
    """

    def plain(layout: Layout) -> T:
        with torch.inference_mode(False), torch.device("cpu"):
            return make(layout)

    return lru_cache(maxsize=256)(plain)


@dataclass(frozen=True)
class Segment:
    """One grid of tokens: `t` frames of `h` rows and `w` columns.

    Attributes:
        t: frames.
        h: rows.
        w: columns.
        rows: if the grid is put together from tiles that were encoded apart, how many of its rows each row of tiles
            gives, from top to bottom; a row of tiles that was all padding gives 0. () is one tile.
        columns: the same from left to right.
    """

    t: int
    h: int
    w: int
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert not self.rows or sum(self.rows) == self.h
        assert not self.columns or sum(self.columns) == self.w

    @property
    def count(self) -> int:
        """Tokens of the grid."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class Structural:
    """A token that carries no content, such as a newline or a separator. It closes a run of content tokens.

    It is kept as long as one token of that run is: a newline with a token of its row, a separator with a token of what
    it separates.

    Attributes:
        place: where it stands in the image's run of placeholders.
        begin: the first content token of the run that it closes, counted without structural tokens.
        end: one past the last.
    """

    place: int
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """The shape of one image's or clip's tokens, known before any encoder runs.

    Attributes:
        segments: grids in order: a single 24 x 24; base and tiles; frames.
        structural: newlines and separators, in the order of their places.

    >>> Layout((Segment(1, 24, 24),)).content
    576
    >>> rows = Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6)))
    >>> rows.content, rows.total
    (6, 8)
    """

    segments: tuple[Segment, ...]
    structural: tuple[Structural, ...] = ()

    @property
    def content(self) -> int:
        """Content tokens: what methods see."""
        return sum(segment.count for segment in self.segments)

    @property
    def total(self) -> int:
        """Content and structural tokens: what the prompt holds."""
        return self.content + len(self.structural)

    @property
    def tiles(self) -> tuple[tuple[Segment, Int64[Tensor, " n"]], ...]:
        """What was encoded apart: for each tile its grid, and which content tokens are its own, `(n,)` int64 ascending.

        A segment that was encoded whole is one tile.

        >>> base, left, right = Layout((Segment(1, 1, 2), Segment(1, 2, 3, columns=(1, 2)))).tiles
        >>> left[1].tolist(), right[0], right[1].tolist()
        ([2, 5], Segment(t=1, h=2, w=2, rows=(), columns=()), [3, 4, 6, 7])
        """
        return _tiles(self)

    @property
    def places(self) -> Int64[Tensor, " N"]:
        """Where each content token stands in the image's run of placeholders: `(N,)` int64, ascending."""
        return _places(self)

    def held(self, kept: Int64[Tensor, " M"]) -> Bool[Tensor, " S"]:
        """Which structural tokens are kept with these content tokens: `(M,)` int64 -> `(S,)` bool."""
        begins, ends, _ = _runs(self)
        marks = torch.zeros(self.content + 1, dtype=torch.int64)
        marks[kept + 1] = 1
        before = marks.cumsum(0)
        return before[ends] > before[begins]

    def placed(self, kept: Int64[Tensor, " M"]) -> tuple[Int64[Tensor, " L"], Int64[Tensor, " L"]]:
        """Content tokens with the structural ones that are kept with them, in the order of the prompt.

        Args:
            kept: `(M,)` int64 on the CPU, content tokens, ascending.

        Returns:
            Their places in the image's run of placeholders, `(L,)` int64, ascending; and what stands there, `(L,)`
            int64: below M the number of a kept content token, from M on M + the number of a structural token.

        >>> rows = Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6)))
        >>> place, source = rows.placed(torch.tensor([4, 5]))
        >>> place.tolist(), source.tolist()
        ([5, 6, 7], [0, 1, 3])
        """
        numbers = torch.arange(kept.shape[0])
        if not self.structural:
            return kept, numbers
        held = self.held(kept).nonzero().squeeze(1)
        place, order = torch.cat([self.places[kept], _runs(self)[2][held]]).sort()
        return place, torch.cat([numbers, held + kept.shape[0]])[order]

    def held_between(self, kept: int) -> tuple[int, int]:
        """The fewest and the most structural tokens that may be kept with `kept` content tokens, wherever they are.

        >>> Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6))).held_between(2)
        (1, 2)
        """
        fewest = most = 0
        for level in _levels(self):
            sizes = sorted((each.end - each.begin for each in level), reverse=True)
            most += min(kept, len(sizes))
            # The fewest: first what no structural token of this level closes, then whole runs, the longest first.
            rest = kept - (self.content - sum(sizes))
            for size in sizes:
                if rest <= 0:
                    break
                rest -= size
                fewest += 1
        return fewest, most


def one_row(count: int) -> Layout:
    """Return the layout of `count` tokens whose rows and columns are unknown.

    >>> one_row(3).segments
    (Segment(t=1, h=1, w=3, rows=(), columns=()),)
    """
    return Layout((Segment(1, 1, count),))


@remembered
def _tiles(layout: Layout) -> tuple[tuple[Segment, Tensor], ...]:
    tiles: list[tuple[Segment, Tensor]] = []
    offset = 0
    for segment in layout.segments:
        index = torch.arange(segment.count).view(segment.t, segment.h, segment.w) + offset
        offset += segment.count
        for top, bottom in _spans(segment.rows or (segment.h,)):
            for left, right in _spans(segment.columns or (segment.w,)):
                part = index[:, top:bottom, left:right].flatten()
                if part.shape[0]:
                    tiles.append((Segment(segment.t, bottom - top, right - left), part))
    return tuple(tiles)


def _spans(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(lengths, initial=0)))


@remembered
def _places(layout: Layout) -> Tensor:
    free = torch.ones(layout.total, dtype=torch.bool)
    free[[each.place for each in layout.structural]] = False
    return free.nonzero().squeeze(1)


@remembered
def _runs(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Begin, end and place of each structural token, `(S,)` int64 each."""
    each = [(one.begin, one.end, one.place) for one in layout.structural]
    begins, ends, places = torch.tensor(each, dtype=torch.int64).view(-1, 3).unbind(1)
    return begins, ends, places


@remembered
def _levels(layout: Layout) -> tuple[tuple[Structural, ...], ...]:
    """Structural tokens sorted so that the runs of one level don't overlap: newlines, then separators of grids."""
    levels: list[list[Structural]] = []
    for each in sorted(layout.structural, key=lambda one: (one.end - one.begin, one.begin)):
        for level in levels:
            if all(each.end <= other.begin or other.end <= each.begin for other in level):
                level.append(each)
                break
        else:
            levels.append([each])
    return tuple(map(tuple, levels))
