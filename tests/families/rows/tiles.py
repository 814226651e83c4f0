"""Pictures in tiles: each tile, then the whole picture; what a pixel shuffle makes of their patches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment
from rows.row import picture

EDGE = 84
"""Pixels along one side of a tile."""
SIDE = 3
"""Visual tokens along one side of a tile, of 2 x 2 patches each."""

CUTS = {"A": (2, 2), "B": (1, 2), "C": (0, 0)}
"""For each picture how many rows and columns of tiles it is cut into; (0, 0) for one that isn't."""


def tiled(cut: tuple[int, int], side: int = SIDE, runs: bool = False) -> Layout:
    rows, columns = cut
    tiles = [Segment(1, side, side, part=(row, column, *cut)) for row in range(rows) for column in range(columns)]
    tiles.append(Segment(1, side, side))
    return Layout(tuple(tiles), runs=(side * side,) * len(tiles) if runs and len(tiles) > 1 else ())


def tiles_of(letter: str, cuts: Mapping[str, tuple[int, int]] = CUTS) -> Tensor:
    """The tiles of a picture and the whole of it: `(tiles, 3, 84, 84)`."""
    rows, columns = cuts[letter]
    image = picture(letter, 3, max(rows, 1) * EDGE, max(columns, 1) * EDGE)
    tiles = []
    for row in range(rows):
        for column in range(columns):
            tiles.append(image[:, row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE])
    tiles.append(interpolate(image[None], size=(EDGE, EDGE), mode="area")[0])
    return torch.stack(tiles)


def of_tokens(patches: Tensor) -> Tensor:
    """What patches `(tiles, 36, ...)` have, by visual token: `(tiles, 9, 4, ...)`. Written with loops."""
    tokens = []
    for row in range(0, 2 * SIDE, 2):
        for column in range(0, 2 * SIDE, 2):
            places = [(row + down) * 2 * SIDE + column + right for down in (0, 1) for right in (0, 1)]
            tokens.append(patches[:, places])
    return torch.stack(tokens, dim=1)


def of_pictures(tiles: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Values of the tokens of all tiles, by picture."""
    return [part.flatten(0, 1) for part in tiles.split(list(counts))]


def smaller(letter: str, side: int, cuts: Mapping[str, tuple[int, int]] = CUTS) -> Tensor:
    """Tiles of `side` x `side` tokens."""
    return interpolate(tiles_of(letter, cuts), size=(side * 28, side * 28), mode="area")
