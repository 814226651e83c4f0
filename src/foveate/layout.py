"""The layout of the tokens of one image: grids, the tiles that were encoded separately, newlines and separators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool, Int64

from foveate.arguments import check_kind
from foveate.errors import FoveateError, quoted, shown
from foveate.numbers import Between, check_whole

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def remembered(make: Callable[[Layout], T]) -> Callable[[Layout], T]:
    """Cache what `make` returns for a layout: normal tensors on the CPU, even if the first call is in inference mode.

    Tensors made in inference mode can't be used in training.
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
        rows: if the grid consists of tiles that were encoded separately, how many of its rows each row of tiles has,
            from top to bottom; 0 for a row of tiles that was all padding. () means one tile.
        columns: the same for columns, from left to right.
        part: the part of the image that the grid shows, where the tokens of its tiles come one tile after another: the
            row and the column of this tile, and how many rows and columns of tiles there are. () means all of it.
    """

    t: int
    h: int
    w: int
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    part: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("t", self.t), ("h", self.h), ("w", self.w)):
            if type(value) is not int or value < 1:
                raise FoveateError(f"{name} of a segment must be a whole number of 1 or more, not {shown(value)}")
        for name, parts, whole in (("rows", self.rows, self.h), ("columns", self.columns, self.w)):
            check_kind(name, parts, tuple, "a tuple of whole numbers")
            if parts and (any(type(part) is not int or part < 0 for part in parts) or sum(parts) != whole):
                raise FoveateError(f"{name} of tiles are {parts}, and must be whole numbers whose sum is {whole}")
        check_kind("part", self.part, tuple, "a tuple of 4 whole numbers, or ()")
        if self.part and (len(self.part) != 4 or any(type(number) is not int or number < 0 for number in self.part)):
            raise FoveateError(f"part of a segment is {self.part}, and must be 4 whole numbers of 0 or more")
        if self.part and (self.part[0] >= self.part[2] or self.part[1] >= self.part[3]):
            raise FoveateError(
                f"part of a segment is row {self.part[0]} and column {self.part[1]} of {self.part[2]} rows and "
                f"{self.part[3]} columns of tiles, counted from 0; name one that is there"
            )

    @property
    def count(self) -> int:
        """The number of tokens of the grid."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class Structural:
    """A token without content, such as a newline or a separator. It follows a group of content tokens.

    It is kept as long as one token of that group is kept. The group of a newline is its row; the group of a separator
    is what stands before it.

    Attributes:
        place: its index among the columns of the image.
        begin: the first content token of its group, counted without structural tokens.
        end: one past the last content token of its group.
        is_text: whether the tokenizer has an id for it, such as [IMG_BREAK], and text embeddings stand there; otherwise
            a visual token stands there.
        between: whether it only stands between groups: it also goes if no content token after it is kept.
    """

    place: int
    begin: int
    end: int
    is_text: bool = False
    between: bool = False

    def __post_init__(self) -> None:
        for name, value in (("place", self.place), ("begin", self.begin), ("end", self.end)):
            if type(value) is not int or value < 0:
                raise FoveateError(
                    f"{name} of a structural token must be a whole number of 0 or more, not {shown(value)}"
                )
        for name, value in (("is_text", self.is_text), ("between", self.between)):
            check_kind(f"{name} of a structural token", value, bool, "True or False")
        if self.begin >= self.end:
            raise FoveateError(
                f"the group of a structural token begins at {self.begin} and ends at {self.end}; it holds one content "
                "token or more, so its end must be larger"
            )


@dataclass(frozen=True)
class Layout:
    """The layout of the tokens of one image or clip, known before any encoder runs.

    The columns of an image are those of its content tokens and of its structural tokens. Text of the prompt may part
    them into runs: before each tile its row and column, or before each frame its time. That text is no part of the
    image.

    Attributes:
        segments: the grids in order, for example a single 24 x 24, base and tiles, or frames.
        structural: newlines and separators, sorted by place.
        runs: how many columns each run has, in order; () means that they are one run.
        times: of a clip, one number per frame: where it stands on the decoder's axis of time, counted from the
            beginning of its run; () means an image. Models with one axis of positions never read them.

    Raises:
        FoveateError: structural tokens or runs don't fit the columns, or times the frames.

    >>> Layout((Segment(1, 24, 24),)).content
    576
    >>> rows = Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6)))
    >>> rows.content, rows.total
    (6, 8)
    >>> Layout((Segment(1, 2, 3), Segment(1, 1, 1)), runs=(6, 1)).run_of.tolist()
    [0, 0, 0, 0, 0, 0, 1]
    """

    segments: tuple[Segment, ...]
    structural: tuple[Structural, ...] = ()
    runs: tuple[int, ...] = ()
    times: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, parts, kind in (("segments", self.segments, Segment), ("structural", self.structural, Structural)):
            given: Any = parts
            if not isinstance(given, tuple) or any(not isinstance(part, kind) for part in parts):  # pyright: ignore
                raise FoveateError(f"{name} of a layout must be a tuple of {kind.__name__} objects, not {shown(parts)}")
        self._check_structural()
        check_kind("runs", self.runs, tuple, "a tuple of whole numbers")
        if self.runs and (any(type(run) is not int or run < 0 for run in self.runs) or sum(self.runs) != self.total):
            raise FoveateError(f"runs of a layout are {self.runs}, and must be whole numbers whose sum is {self.total}")
        check_kind("times", self.times, tuple, "a tuple of whole numbers")
        frames = sum(segment.t for segment in self.segments)
        if self.times and (any(type(time) is not int or time < 0 for time in self.times) or len(self.times) != frames):
            raise FoveateError(
                f"times of a layout are {shown(self.times)}, and must be one whole number of 0 or more for each of its "
                f"{frames} frames"
            )

    def _check_structural(self) -> None:
        """Check that structural tokens are sorted by place, and that they and their groups are among the columns.

        Raises:
            FoveateError: one isn't.
        """
        content, total, before = self.content, self.total, -1
        for token in self.structural:
            if not before < token.place < total or token.end > content:
                raise FoveateError(
                    f"{token} doesn't fit a layout of {content} content tokens and {total} columns; structural tokens "
                    f"must be sorted by place, with places below {total} and groups that end at {content} or before"
                )
            before = token.place

    @property
    def is_clip(self) -> bool:
        """Whether these are the tokens of a clip."""
        return bool(self.times)

    @property
    def is_still(self) -> bool:
        """Whether these are the tokens of a picture: neither those of a clip, nor of an image of several frames."""
        return not self.is_clip and all(segment.t == 1 for segment in self.segments)

    @property
    def content(self) -> int:
        """The number of content tokens, which methods see."""
        return sum(segment.count for segment in self.segments)

    @property
    def total(self) -> int:
        """The number of content and structural tokens: the columns of the prompt that belong to the image."""
        return self.content + len(self.structural)

    @property
    def whole(self) -> int:
        """The number of the segment that shows the whole image: the first that does.

        >>> Layout((Segment(1, 2, 2, part=(0, 0, 1, 2)), Segment(1, 2, 2, part=(0, 1, 1, 2)), Segment(1, 2, 2))).whole
        2
        """
        return next((number for number, segment in enumerate(self.segments) if not segment.part), 0)

    @property
    def placeholders(self) -> int:
        """The number of its columns that have the id of the placeholder: all but the structural tokens of text."""
        return self.total - sum(token.is_text for token in self.structural)

    @property
    def run_lengths(self) -> tuple[int, ...]:
        """How many columns each run has, also where there is one."""
        return self.runs or (self.total,)

    @property
    def run_of(self) -> Int64[Tensor, " N"]:
        """The number of the run that each column is in: `(N,)` int64, ascending."""
        return _run_of(self)

    @property
    def within_runs(self) -> Int64[Tensor, " N"]:
        """The place of each column within its run: `(N,)` int64.

        >>> Layout((Segment(1, 2, 2), Segment(1, 1, 2)), runs=(4, 2)).within_runs.tolist()
        [0, 1, 2, 3, 0, 1]
        """
        return _within_runs(self)

    @property
    def tiles(self) -> tuple[tuple[Segment, Int64[Tensor, " n"]], ...]:
        """The tiles that were encoded separately: the grid of each, and its content tokens, `(n,)` int64 ascending.

        A segment that was encoded as a whole is one tile. `tile_grids` has the grids alone.

        >>> base, left, right = Layout((Segment(1, 1, 2), Segment(1, 2, 3, columns=(1, 2)))).tiles
        >>> left[1].tolist(), right[0], right[1].tolist()
        ([2, 5], Segment(t=1, h=2, w=2, rows=(), columns=(), part=()), [3, 4, 6, 7])
        """
        return _tiles(self)

    @property
    def tile_grids(self) -> tuple[Segment, ...]:
        """The grid of each of the `tiles`."""
        return tuple(
            Segment(segment.t, bottom - top, right - left)
            for segment in self.segments
            for top, bottom in _spans(segment.rows or (segment.h,))
            for left, right in _spans(segment.columns or (segment.w,))
            if bottom > top and right > left
        )

    @property
    def places(self) -> Int64[Tensor, " N"]:
        """The index of each content token among the columns of the image: `(N,)` int64, ascending."""
        return _places(self)

    def held(self, kept: Int64[Tensor, " M"]) -> Bool[Tensor, " S"]:
        """Mark the structural tokens that are kept with these content tokens: `(M,)` int64 -> `(S,)` bool.

        Raises:
            FoveateError: `kept` is something else than ascending content tokens on the CPU.
        """
        self._check_kept(kept)
        begins, ends, _, between = _groups(self)
        marks = torch.zeros(self.content + 1, dtype=torch.int64)
        marks[kept + 1] = 1
        before = marks.cumsum(0)
        return (before[ends] > before[begins]) & (~between | (before[ends] < kept.shape[0]))

    def placed(self, kept: Int64[Tensor, " M"]) -> tuple[Int64[Tensor, " L"], Int64[Tensor, " L"]]:
        """Return content tokens and the structural ones that are kept with them, in the order of the prompt.

        Args:
            kept: `(M,)` int64 on the CPU, content tokens, ascending.

        Returns:
            Their indices among the columns of the image, `(L,)` int64, ascending; and which token each is, `(L,)`
            int64: an index into `kept` if below M, otherwise M + the index of a structural token.

        Raises:
            FoveateError: `kept` is something else.

        >>> rows = Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6)))
        >>> place, source = rows.placed(torch.tensor([4, 5]))
        >>> place.tolist(), source.tolist()
        ([5, 6, 7], [0, 1, 3])
        """
        if not self.structural:
            self._check_kept(kept)
            return kept, torch.arange(kept.shape[0])
        held = self.held(kept).nonzero().squeeze(1)
        numbers = torch.arange(kept.shape[0])
        place, order = torch.cat([self.places[kept], _groups(self)[2][held]]).sort()
        return place, torch.cat([numbers, held + kept.shape[0]])[order]

    def _check_kept(self, kept: object) -> None:
        """Check that values are content tokens on the CPU, ascending.

        Raises:
            FoveateError: they aren't.
        """
        check_kind("kept", kept, torch.Tensor, "a tensor of content tokens, ascending")
        assert isinstance(kept, torch.Tensor)
        if kept.ndim != 1 or kept.dtype != torch.int64 or kept.device.type != "cpu":
            raise FoveateError(
                f"kept is {tuple(kept.shape)} {str(kept.dtype).removeprefix('torch.')} on {kept.device}, and must be "
                "int64 (kept tokens) on the CPU"
            )
        if not kept.numel():
            return
        # Ascending numbers have the least first and the largest last.
        least, most, ascending = int(kept[0]), int(kept[-1]), bool((kept.diff() > 0).all())
        if least < 0 or most >= self.content or not ascending:
            raise FoveateError(
                f"kept is {quoted(kept)}, and must hold content tokens from 0 to {self.content - 1}, ascending"
            )

    def held_between(self, kept: int) -> tuple[int, int]:
        """Return the fewest and the most structural tokens that can be kept with any `kept` content tokens.

        >>> Layout((Segment(1, 2, 3),), (Structural(3, 0, 3), Structural(7, 3, 6))).held_between(2)
        (1, 2)

        Raises:
            FoveateError: there are not so many content tokens.
        """
        kept = check_whole("kept", kept, Between(0, self.content))
        fewest = most = 0
        for level in _levels(self):
            sizes = sorted((each.end - each.begin for each in level), reverse=True)
            between = level[0].between
            if between:
                # What stands after the last one is a group, too, and has none of its own.
                sizes = sorted([*sizes, self.content - max(each.end for each in level)], reverse=True)
            most += max(0, min(kept, len(sizes)) - between)
            # The fewest: first tokens outside all groups of this level, then whole groups, the longest first.
            rest, groups = kept - (self.content - sum(sizes)), 0
            for size in sizes:
                if rest <= 0:
                    break
                rest -= size
                groups += 1
            fewest += max(0, groups - between)
        return fewest, most


def one_row(count: int) -> Layout:
    """Return the layout of `count` tokens whose rows and columns are unknown; of none, it has no segment.

    >>> one_row(3).segments
    (Segment(t=1, h=1, w=3, rows=(), columns=(), part=()),)
    """
    count = check_whole("count", count, Between(0))
    return Layout((Segment(1, 1, count),) if count else ())


@remembered
def _tiles(layout: Layout) -> tuple[tuple[Segment, Tensor], ...]:
    tiles: list[Tensor] = []
    offset = 0
    for segment in layout.segments:
        index = torch.arange(segment.count).view(segment.t, segment.h, segment.w) + offset
        offset += segment.count
        for top, bottom in _spans(segment.rows or (segment.h,)):
            for left, right in _spans(segment.columns or (segment.w,)):
                tiles.append(index[:, top:bottom, left:right].flatten())
    return tuple(zip(layout.tile_grids, (tile for tile in tiles if tile.shape[0]), strict=True))


def _spans(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(lengths, initial=0)))


@remembered
def _places(layout: Layout) -> Tensor:
    free = torch.ones(layout.total, dtype=torch.bool)
    free[[each.place for each in layout.structural]] = False
    return free.nonzero().squeeze(1)


@remembered
def _run_of(layout: Layout) -> Tensor:
    lengths = torch.tensor(layout.run_lengths)
    return torch.arange(len(lengths)).repeat_interleave(lengths)


@remembered
def _within_runs(layout: Layout) -> Tensor:
    return torch.cat([torch.arange(length) for length in layout.run_lengths])


@remembered
def _groups(layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return begin, end and place of each structural token, `(S,)` int64 each, and whether it is between groups."""
    each = [(one.begin, one.end, one.place) for one in layout.structural]
    begins, ends, places = torch.tensor(each, dtype=torch.int64).view(-1, 3).unbind(1)
    return begins, ends, places, torch.tensor([one.between for one in layout.structural], dtype=torch.bool)


@lru_cache(maxsize=256)
def _levels(layout: Layout) -> tuple[tuple[Structural, ...], ...]:
    """Sort structural tokens of one kind into levels whose groups don't overlap: newlines, then separators of grids."""
    levels: list[list[Structural]] = []
    for each in sorted(layout.structural, key=lambda one: (one.end - one.begin, one.begin)):
        for level in levels:
            apart = all(each.end <= other.begin or other.end <= each.begin for other in level)
            if apart and level[0].between == each.between:
                level.append(each)
                break
        else:
            levels.append([each])
    return tuple(map(tuple, levels))
