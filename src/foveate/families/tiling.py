"""Families whose encoder sees an image as tiles of one size, whose tokens come one tile after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from foveate.errors import FoveateError
from foveate.families.family import Capture, Family
from foveate.families.pixels import resized_pixels
from foveate.tokens import Layout, Segment

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TileGrid:
    """How an image of a prompt was cut.

    Attributes:
        tiles: how many tiles it is, the whole image among them.
        rows: rows of tiles; 0 if it is the whole image alone, or if nothing tells how its tiles lie.
        columns: columns of tiles; 0 likewise.
    """

    tiles: int = 1
    rows: int = 0
    columns: int = 0


class TiledFamily(Family):
    """Images are cut into tiles of one size, and the whole image is one more tile.

    The encoder sees each tile alone, and a pixel shuffle makes one visual token of a square of its patches. Only the
    prompt tells which tiles are one image: a family says how in `tile_grids`. Each tile is a grid of its own
    (`Segment.part`), so budgets are per image by default, and those of each tile with `per=tile`.

    Attention and keys come from the tile in which a token was encoded.

    To resize an image, "interpolate" gives the encoder smaller tiles where a family has that way, so that fewer tokens
    come out of each; "enlarge" shrinks each tile and enlarges it again, which saves no token. Where the tiles of a call
    have one size, a step keeps a fraction of them, or a number `per=tile`.
    """

    resize_modes = ("interpolate", "enlarge")
    resizes_inputs = True
    words_between_tiles = False
    """Whether text of the prompt stands between the tiles of an image."""
    whole_first = False
    """Whether the whole image comes before its tiles, and not after them."""
    pixel_axes: ClassVar[tuple[str, ...]] = ("tiles", "channels", "height", "width")
    """The axes of `pixel_values`."""

    # What the configuration alone tells

    @property
    @abstractmethod
    def merge(self) -> int:
        """Patches along one side of a visual token."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Pixels along one side of a patch."""

    @property
    @abstractmethod
    def edge(self) -> int:
        """Pixels along one side of a tile, as the processor cuts them."""

    @property
    def token_side(self) -> int:
        """Pixels along one side of a visual token."""
        return self.patch * self.merge

    @property
    def tile_side(self) -> int:
        """Tokens along one side of a tile, as the processor cuts them.

        Raises:
            FoveateError: a tile is not a whole number of tokens.
        """
        if self.edge % self.token_side:
            raise FoveateError(
                f"tiles of {self.edge} pixels are no multiple of the {self.token_side} pixels that become one token of "
                f"{self.title}; check image_size, patch_size and how many patches a token has"
            )
        return self.edge // self.token_side

    def tiled(self, grid: TileGrid, side: int) -> Layout:
        """Return the layout of an image that was cut so, of `side` x `side` tokens per tile."""
        return self.of_tiles(grid, [(side, side)] * grid.tiles)

    def of_tiles(self, grid: TileGrid, shapes: Sequence[tuple[int, int]]) -> Layout:
        """Return the layout of an image that was cut so, from rows and columns of tokens of each of its tiles."""
        cut = grid.rows * grid.columns
        parts = [(*divmod(number, grid.columns), grid.rows, grid.columns) for number in range(cut)]
        others: list[tuple[int, ...]] = [()] * (grid.tiles - cut)
        parts = [*others, *parts] if self.whole_first else [*parts, *others]
        tiles = [Segment(1, *shape, part=part) for shape, part in zip(shapes, parts, strict=True)]
        runs = tuple(tile.count for tile in tiles) if self.words_between_tiles and len(tiles) > 1 else ()
        return Layout(tuple(tiles), runs=runs)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of patches of each tile."""
        return tuple(Segment(1, tile.h * self.merge, tile.w * self.merge) for tile in layout.segments)

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout with square tiles of the smaller side of `size`."""
        side = min(size)
        segments = tuple(replace(tile, h=side, w=side) for tile in layout.segments)
        return Layout(segments, runs=(side * side,) * len(layout.runs))

    # Layouts

    @abstractmethod
    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return how many tiles each entry of the encoder's output has, from the arguments of `get_image_features`."""

    @abstractmethod
    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Return how each image of a prompt was cut, in its order; None if its placeholders are not these tiles.

        Args:
            input_ids: `(B, S)` int64.
            tokens: of each tile, in prompt order.
            tiles: the numbers of the encoder's tiles, in prompt order.
            previews: of the tiles, by number.
        """

    def tile_shapes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return rows and columns of tokens of each tile, once the form of the pixels is checked.

        Raises:
            FoveateError: pixels have another form.
        """
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, torch.Tensor):
            raise FoveateError(f"{self.title} needs pixel_values, a tensor of tiles; pass what its processor returned")
        side = self._side(pixels)
        return [(side, side)] * sum(self.tile_counts(inputs))

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the tiles of each image; without `input_ids`, those of each entry of the encoder's output."""
        shapes = self.tile_shapes(inputs)
        ids = inputs.get("input_ids")
        grids = None
        if ids is not None:
            tokens = [rows * columns for rows, columns in shapes]
            grids = self.tile_grids(ids, tokens, range(len(shapes)), self.previews(inputs))
        return self._grouped(grids or list(map(TileGrid, self.tile_counts(inputs))), shapes)

    def _grouped(self, grids: Sequence[TileGrid], shapes: Sequence[tuple[int, int]]) -> tuple[Layout, ...]:
        """Return the layout of each image from the tiles of all of them, one image after another."""
        ends = accumulate(grid.tiles for grid in grids)
        return tuple(self.of_tiles(grid, shapes[end - grid.tiles : end]) for grid, end in zip(grids, ends, strict=True))

    def _side(self, pixels: Tensor) -> int:
        if pixels.ndim != len(self.pixel_axes):
            raise FoveateError(
                f"{self.title} takes pixel_values ({', '.join(self.pixel_axes)}), and {tuple(pixels.shape)} came; pass "
                "what its processor returned"
            )
        height, width = pixels.shape[-2:]
        if height != width or height % self.token_side:
            raise FoveateError(
                f"tiles of {width} x {height} pixels came, and {self.title} takes squares whose side is a multiple of "
                f"{self.token_side} pixels; pass what its processor returned"
            )
        return height // self.token_side

    def previews(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return what `tile_grids` has to see of the tiles, with a row for each; None for nothing."""
        return None

    # Encoding

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the encoder and the projector, once the form of the tiles is checked."""
        self.tile_shapes(inputs)
        return super().encode(inputs)

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Count the tiles of each entry of the encoder's output."""
        kwargs = {"pixel_values": args[0], **kwargs} if args else kwargs
        counts = self.tile_counts(kwargs)
        layouts = self.layouts(kwargs)
        first = [sum(counts[:number]) for number in range(len(counts))]
        tiles = [tuple(range(begin, begin + count)) for begin, count in zip(first, counts, strict=True)]
        return Capture(layouts, layouts, extra={"tiles": tiles, "previews": self.previews(kwargs)})

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Group tiles into the images of a prompt."""
        if input_ids is None or not order:
            return capture, order
        full, seen = (
            [(tile.h, tile.w) for layout in layouts for tile in layout.segments]
            for layouts in (capture.layouts, capture.seen)
        )
        tiles = [tile for entry in order for tile in capture.extra["tiles"][entry]]
        tokens = [full[tile][0] * full[tile][1] for tile in tiles]
        grids = self.tile_grids(input_ids, tokens, tiles, capture.extra["previews"])
        if grids is None:
            return capture, order
        numbers: dict[tuple[TileGrid, tuple[int, ...]], int] = {}
        images: list[int] = []
        begin = 0
        for grid in grids:
            own = tuple(tiles[begin : begin + grid.tiles])
            images.append(numbers.setdefault((grid, own), len(numbers)))
            begin += grid.tiles
        # One object for equal prompts: plans are cached by it.
        captures: dict[Any, Capture] = capture.extra.setdefault("in_prompt", {})
        key = tuple(numbers)
        if key not in captures:
            others = {name: value for name, value in capture.extra.items() if value is not captures}
            captures[key] = replace(
                capture,
                layouts=tuple(self.of_tiles(grid, [full[tile] for tile in own]) for grid, own in numbers),
                seen=tuple(self.of_tiles(grid, [seen[tile] for tile in own]) for grid, own in numbers),
                extra={**others, "tiles": [own for _, own in numbers]},
            )
        return captures[key], images

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each tile down to its target grid; "enlarge" enlarges them to their size again."""
        sides = {min(size) for size, layout in zip(sizes, layouts, strict=True) if layout.segments}
        if len(sides) > 1:
            raise FoveateError(
                f"images of one {self.title} call shrink to crops of one size, and {sorted(sides)} were asked for; "
                "keep a fraction, or a number per=tile, or encode the images one by one"
            )
        pixels: Tensor = inputs["pixel_values"]
        edge = (*sides, self._side(pixels))[0] * self.token_side
        found = dict(inputs)
        # A tile of padding is all zeros, and stays so.
        small = resized_pixels(pixels.flatten(0, -4), (edge, edge), mode == "enlarge")
        found["pixel_values"] = small.to(pixels.dtype).unflatten(0, pixels.shape[:-3])
        return found

    # Features and signals

    def by_image(self, tiles: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Split values of the tokens of each tile `(tiles, n, ...)` by image: `(N, ...)` each."""
        return tuple(tiles[list(own)].flatten(0, 1) for own in capture.extra["tiles"])

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the patches of each token side by side, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self.by_image(capture.features, capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return self.by_image(capture.projected, capture)

    def patch_heads(self, capture: Capture, layer: int) -> tuple[Tensor, Tensor]:
        """Return the queries and keys of the patches in an encoder layer, `(tiles, P, H, d)` each."""
        width = cast("Any", self.encoder_attentions[layer]).head_dim
        recorded = capture.attention[layer]
        return recorded["queries"].unflatten(-1, (-1, width)), recorded["keys"].unflatten(-1, (-1, width))

    def by_token(self, patches: Tensor) -> Tensor:
        """Group what patches have `(tiles, P, ...)`, in raster order, by token: `(tiles, n, merge ** 2, ...)`."""
        side = round((patches.shape[1]) ** 0.5) // self.merge
        blocks = patches.unflatten(1, (side, self.merge, side, self.merge)).transpose(2, 3)
        return blocks.flatten(3, 4).flatten(1, 2)
