"""Tiles of which only their pixels tell how they lie: the processor's outputs don't have it, and no text names them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import torch

from foveate.families.tiling import TiledFamily, TileGrid

if TYPE_CHECKING:
    from torch import Tensor

MOST_TILES = 12
"""Tiles of an image, without the whole one, as the processors of all released models have it."""
PREVIEW = 8
"""Values along one side of a small picture of a tile."""
_ALIKE = (0.5, 0.01)
"""How far a picture put together from tiles may be from the whole one: a share of its variance, and a little more."""
_EQUAL = 1e-6
"""By how much more two pictures may be off and still count as equally near."""


class ArrangedTiles(TiledFamily):
    """Tiles lie in the arrangement in which they make the picture of the last tile, which is the whole image.

    The processor makes one tile of an image, or two and more in rows and then the whole. Tiles that make no such
    picture are an image each. Where several arrangements fit equally well, as for a blank page, the most nearly square
    one is taken: the number of tokens is the same, but their rows and columns may be other ones.
    """

    @abstractmethod
    def tiles_of_images(self, input_ids: Tensor, tokens: Sequence[int]) -> list[int] | None:
        """Return how many tiles each image of a prompt has, in its order; None if its placeholders aren't whole tiles.

        Args:
            input_ids: `(B, S)` int64.
            tokens: of each tile, in prompt order.
        """

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return 1 for each tile: the encoder's output has an entry for each."""
        return [1] * inputs["pixel_values"].shape[0]

    def previews(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return a small picture of each tile: `(tiles, channels, 8, 8)` float32."""
        return torch.nn.functional.adaptive_avg_pool2d(inputs["pixel_values"].float(), PREVIEW)

    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Look at the tiles of each image for how they lie."""
        counts = self.tiles_of_images(input_ids, tokens)
        if counts is None or sum(counts) != len(tiles):
            return None
        assert previews is not None
        grids: list[TileGrid] = []
        begin = 0
        for count in counts:
            grids += _arranged(previews[list(tiles[begin : begin + count])])
            begin += count
        return grids


def tiles_by_end(input_ids: Tensor, placeholder: int, tokens: Sequence[int], end: int) -> list[int] | None:
    """Return how many tiles each image of a prompt has; None if its placeholders aren't whole tiles.

    An image ends with the tile after which the same tokens stand as after the last tile of the row.

    >>> tiles_by_end(torch.tensor([[9, 9, 1, 9, 2, 8, 9, 9, 2, 7]]), placeholder=9, tokens=[2, 1, 2], end=1)
    [2, 1]

    Args:
        input_ids: `(B, S)` int64.
        placeholder: the id of visual tokens.
        tokens: of each tile, in prompt order.
        end: how many tokens after a tile are compared.
    """
    lengths, counts = list(reversed(tokens)), []
    for ids in input_ids.tolist():
        stops: list[int] = []
        place = 0
        while place < len(ids):
            if ids[place] != placeholder:
                place += 1
                continue
            if not lengths or set(ids[place : place + lengths[-1]]) != {placeholder}:
                return None
            place += lengths.pop()
            stops.append(place)
        tiles = 0
        for stop in stops:
            tiles += 1
            if ids[stop : stop + end] == ids[stops[-1] : stops[-1] + end]:
                counts.append(tiles)
                tiles = 0
    return None if lengths else counts


def arrangements(fewest: int = 1, most: int = MOST_TILES) -> list[tuple[int, int]]:
    """Return the rows and columns of all arrangements of so many tiles, from the smallest to the largest.

    >>> arrangements(1, 3)
    [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3)]
    """
    sides = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if fewest <= rows * columns <= most
    ]
    return sorted(sides, key=lambda side: side[0] * side[1])


def nearest_shape(height: int, width: int, edge: int, fewest: int = 1, most: int = MOST_TILES) -> tuple[int, int]:
    """Return the rows and columns of the arrangement of tiles whose shape is nearest to an image's.

    Of equally near ones the processor takes the larger, as long as it holds less than twice the image's pixels.

    >>> nearest_shape(480, 640, 448), nearest_shape(448, 448, 448), nearest_shape(2000, 2000, 448)
    ((3, 4), (1, 1), (3, 3))
    """
    best, nearest = (1, 1), inf
    for rows, columns in arrangements(fewest, most):
        distance = abs(width / height - columns / rows)
        larger = height * width > 0.5 * edge * edge * rows * columns
        if distance < nearest or (distance == nearest and larger):
            best, nearest = (rows, columns), distance
    return best


def arrangement(tiles: Tensor, whole: Tensor) -> tuple[int, int]:
    """Return the rows and columns in which tiles make the picture of a whole image; (0, 0) if in none.

    Where several do so equally well, as for a blank page, the most nearly square one is returned.

    >>> whole = torch.arange(16.0).view(1, 4, 4)
    >>> halves = torch.stack([half.repeat_interleave(2, dim=2) for half in whole.split(2, dim=2)])
    >>> arrangement(halves, whole), arrangement(torch.zeros(6, 1, 4, 4), torch.zeros(1, 4, 4))
    ((1, 2), (2, 3))

    Args:
        tiles: small pictures of them, `(tiles, channels, height, width)`.
        whole: one of the image, `(channels, height, width)`.
    """
    count, (_, height, width), errors = tiles.shape[0], whole.shape, []
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    shapes.sort(key=lambda shape: abs(shape[0] - shape[1]))
    for rows, columns in shapes:
        picture = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        errors.append(
            (torch.nn.functional.adaptive_avg_pool2d(picture[None], (height, width))[0] - whole).square().mean()
        )
    found = torch.stack(errors)
    share, more = _ALIKE
    if not bool(found.min() <= share * whole.var(correction=0) + more):
        return 0, 0
    return shapes[int((found <= found.min() + _EQUAL).int().argmax())]


def _arranged(previews: Tensor) -> list[TileGrid]:
    """Return how tiles of one run lie, from small pictures of them `(tiles, C, h, w)`; the last is the whole image."""
    count = previews.shape[0]
    # The processor makes one tile, or two and more and the whole image.
    shape = arrangement(previews[:-1], previews[-1]) if count > 2 else (0, 0)
    return [TileGrid(count, *shape)] if all(shape) else [TileGrid()] * count
