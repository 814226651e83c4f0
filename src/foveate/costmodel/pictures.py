"""From the size of a picture in pixels to the grids that encoder and prompt have of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.errors import FoveateError
from foveate.tokens import Layout, Segment, Structural

MAX_PIXELS = 100_000_000
"""Larger pictures are refused, as everywhere in foveate."""


@dataclass(frozen=True)
class Picture:
    """What becomes of one picture.

    Attributes:
        layout: its visual tokens in the prompt.
        grids: the grids of patches that the encoder sees: one, or one per tile.
    """

    layout: Layout
    grids: tuple[Segment, ...]

    @property
    def patches(self) -> int:
        """Patches that the encoder sees."""
        return sum(grid.count for grid in self.grids)


@dataclass(frozen=True)
class Fixed:
    """Every picture is brought to one size (LLaVA-1.5)."""

    side: int

    def picture(self, width: int, height: int) -> Picture:
        """The same grid, whatever the size."""
        check_size(width, height)
        grid = Segment(1, self.side, self.side)
        return Picture(Layout((grid,)), (grid,))

    def shrunk(self, picture: Picture, rows: int, columns: int) -> Picture:
        """So many rows and columns."""
        return grid_picture(rows, columns)


@dataclass(frozen=True)
class Row:
    """So many visual tokens for every picture; how they lie in it isn't known, and so nothing can shrink it."""

    tokens: int

    def picture(self, width: int, height: int) -> Picture:
        """One row, whatever the size."""
        check_size(width, height)
        return grid_picture(1, self.tokens)

    def shrunk(self, picture: Picture, rows: int, columns: int) -> Picture:
        """What nobody asks for."""
        raise NotImplementedError


@dataclass(frozen=True)
class Flexible:
    """A picture keeps its proportions, rounded to whole tokens, between two numbers of pixels (Qwen-VL).

    Attributes:
        factor: pixels along one side of a visual token.
        merge: patches along one side of a visual token.
        least, most: pixels that a picture has at least and at most once it is resized; the released processors'.
    """

    factor: int
    merge: int
    least: int
    most: int

    def picture(self, width: int, height: int) -> Picture:
        """The grid of a picture behind the processor's resizing."""
        check_size(width, height)
        if max(width, height) > 200 * min(width, height):
            raise FoveateError(f"a picture of {width} x {height} pixels is too long: its sides may be 200 to 1 at most")
        rows, columns = (max(1, round(side / self.factor)) for side in (height, width))
        area = rows * columns * self.factor**2
        if area > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows, columns = (max(1, math.floor(side / shrink / self.factor)) for side in (height, width))
        elif round(height / self.factor) * round(width / self.factor) * self.factor**2 < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(side * grow / self.factor) for side in (height, width))
        return grid_picture(rows, columns, self.merge)

    def shrunk(self, picture: Picture, rows: int, columns: int) -> Picture:
        """So many rows and columns in every frame."""
        return grid_picture(rows, columns, self.merge, picture.layout.segments[0].t)


@dataclass(frozen=True)
class Tiled:
    """A small copy of the whole, and tiles of the best of a few sizes, padding taken off again (LLaVA-NeXT).

    Attributes:
        side: tokens along one side of a tile.
        pixels: pixels along one side of a tile.
        sizes: sizes in pixels to choose from, rows first.
    """

    side: int
    pixels: int
    sizes: tuple[tuple[int, int], ...]

    def picture(self, width: int, height: int) -> Picture:
        """Small copy and tiles; a newline token ends each row of the tiles."""
        check_size(width, height)
        best = self._best(width, height)
        down, across = (edge // self.pixels * self.side for edge in best)
        rows, columns = down, across
        # The picture sits in the middle of the tiles; rows or columns that hold padding alone are dropped.
        if width / height > across / down:
            rows -= 2 * ((down - int(round(height * (across / width), 7))) // 2)
        else:
            columns -= 2 * ((across - int(round(width * (down / height), 7))) // 2)
        shares = _shares(down, rows, self.side), _shares(across, columns, self.side)
        return self._picture(self.side, self.side, *shares)

    def shrunk(self, picture: Picture, rows: int, columns: int) -> Picture:
        """Every crop makes `rows` x `columns` tokens; the same share of the tiles is padding."""
        tiles = picture.layout.segments[1]
        shares = (
            _shares(len(lengths) * side, max(1, full * side // self.side), side)
            for full, lengths, side in ((tiles.h, tiles.rows, rows), (tiles.w, tiles.columns, columns))
        )
        return self._picture(rows, columns, *shares)

    def _picture(self, height: int, width: int, rows: tuple[int, ...], columns: tuple[int, ...]) -> Picture:
        crop, tiles = Segment(1, height, width), Segment(1, sum(rows), sum(columns), rows, columns)
        if not tiles.count:
            raise FoveateError("a picture of such proportions leaves no row of tokens; it is too long")
        newlines = tuple(
            Structural(crop.count + (row + 1) * (tiles.w + 1) - 1, begin, begin + tiles.w)
            for row, begin in enumerate(range(crop.count, crop.count + tiles.count, tiles.w))
        )
        return Picture(Layout((crop, tiles), newlines), (crop,) * (1 + len(rows) * len(columns)))

    def _best(self, width: int, height: int) -> tuple[int, int]:
        def merit(size: tuple[int, int]) -> tuple[int, int]:
            rows, columns = size
            scale = min(columns / width, rows / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            return used, used - rows * columns

        return max(self.sizes, key=merit)


def _shares(length: int, visible: int, side: int) -> tuple[int, ...]:
    """What each tile of `side` gives to the `visible` places in the middle of `length`.

    >>> _shares(48, 36, 24), _shares(7, 2, 7)
    ((18, 18), (2,))
    """
    begin = (length - visible) // 2
    return tuple(max(0, min(begin + visible, start + side) - max(begin, start)) for start in range(0, length, side))


def grid_picture(rows: int, columns: int, merge: int = 1, frames: int = 1) -> Picture:
    """A picture of so many rows and columns of visual tokens."""
    layout = Layout((Segment(frames, rows, columns),))
    return Picture(layout, (Segment(frames, rows * merge, columns * merge),))


def check_size(width: int, height: int) -> None:
    """Whether pictures of this size exist.

    Raises:
        FoveateError: a side is no whole number above 0, or the picture is larger than foveate opens.
    """
    for side in (width, height):
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise FoveateError(f"a picture of {width} x {height} pixels does not exist; both sides are 1 or more")
    if width * height > MAX_PIXELS:
        raise FoveateError(
            f"a picture of {width} x {height} has {width * height:,} pixels, and the limit is {MAX_PIXELS:,}"
        )


def read_sizes(images: Sequence[object]) -> list[tuple[int, int]]:
    """Sizes of pictures, (width, height) in pixels, as PIL has them.

    Raises:
        FoveateError: one of them is no pair of numbers.
    """
    sizes: list[tuple[int, int]] = []
    for each in images:
        if not isinstance(each, Sequence) or isinstance(each, str) or len(each) != 2:
            raise FoveateError(f"{each!r} is no size of a picture; write (width, height) in pixels")
        width, height = each
        check_size(width, height)
        sizes.append((width, height))
    return sizes
