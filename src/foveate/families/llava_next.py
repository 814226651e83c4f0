"""LLaVA-NeXT: LLaVA-1.5's encoder over the whole image and over its tiles.  Liu et al. 2024, "LLaVA-NeXT" (blog)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError
from foveate.families.family import Capture, Family
from foveate.families.llava import Llava
from foveate.families.registry import register_family
from foveate.layout import remembered
from foveate.tokens import Layout, Segment, Signal, Structural
from foveate.transformers_api import best_resolution

if TYPE_CHECKING:
    from torch import Tensor


@register_family
class LlavaNext(Llava):
    """LLaVA-NeXT with a CLIP tower: the whole image as one grid (the base), then a finer grid put together from tiles.

    The encoder sees crops of one size: the whole image, then the tiles of the image resized and padded to the best of
    the configuration's resolutions. The tokens of the tiles form one grid without the padding, and a newline token ends
    each of its rows. The base has no newlines. Position ids are one-dimensional.

    Attention and keys come from the crop in which a token was encoded: [CLS] of each crop attends to that crop alone,
    so attention sums to about 1 in each crop, less the share of tokens that are cut away as padding.

    An image can be resized in two ways: "interpolate" gives the encoder smaller crops and interpolates its position
    embeddings, so that fewer tokens and newlines come out; all images of a call must then have crops of one size, as
    they have with a fraction. "enlarge" shrinks each crop and enlarges it again, which saves no token. Dropping tiles
    is not a way to resize: the configuration says which numbers of tiles the model knows.
    """

    gives_pixels = False
    name = "llava_next"
    title = "LLaVA-NeXT"
    checkpoints = (
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-hf/llava-v1.6-34b-hf",
        "llava-hf/llama3-llava-next-8b-hf",
        "llava-hf/llava-next-72b-hf",
        "llava-hf/llava-next-110b-hf",
    )
    core_class = "LlavaNextModel"
    places = Family.places
    outside_encoder = "padding is cut out of its tiles after the encoder, and may have been merged by then"
    # The tower sees crops; the sizes of the images tell which image a crop belongs to.
    encoder_arguments: ClassVar[tuple[str, ...]] = ("image_sizes",)

    def check_feature_maps(self) -> None:
        """Refuse: one feature map per image does not hold the tiles."""
        Family.check_feature_maps(self)

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return base and tiles for each `(height, width)` of `image_sizes`, the sizes before any resizing."""
        return tuple(self.image_layout(height, width) for height, width in self.image_sizes(inputs))

    def image_sizes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return height and width in pixels of each image before any resizing, once the form of crops is checked.

        Raises:
            FoveateError: there are no sizes, or crops have another size than the encoder takes.
        """
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise FoveateError(f"{self.title} needs image_sizes beside pixel_values; the processor returns both")
        if isinstance(pixels := inputs.get("pixel_values"), torch.Tensor):
            self.check_pixels(pixels)
        return [(height, width) for height, width in torch.as_tensor(sizes).tolist()]

    def image_layout(self, height: int, width: int) -> Layout:
        """Return base and tiles of an image of `height` x `width` pixels, its size before any resizing."""
        return laid_out((self.side, self.side), *self.tiles_of(height, width))

    def tiles_of(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return how an image is tiled: rows and columns of tiles, then those of their tokens without the padding.

        Raises:
            FoveateError: no token is left.
        """
        best = best_resolution((height, width), self.config.image_grid_pinpoints)
        edge, side = int(self.config.vision_config.image_size), self.side
        down, across = best[0] // edge, best[1] // edge
        # The image fills one side of the tiles' area; on the other, the tokens of the padding are cut away evenly.
        rows, columns = down * side, across * side
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        if not rows or not columns:
            raise FoveateError(
                f"an image of {width} x {height} pixels is too narrow for {self.title}: nothing of its tiles is left "
                "without padding; crop it, or make its shorter side longer"
            )
        return (down, across), (rows, columns)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grid of a crop, once for the base and once for each tile."""
        base = layout.segments[0]
        return (base,) * crops_of(layout)

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return a layout with `size` tokens per crop; the tiles' grid shrinks in proportion, rounded down."""
        (height, width), tiles = size, layout.segments[1]
        visible = max(1, tiles.h * height // self.side), max(1, tiles.w * width // self.side)
        return laid_out(size, (len(tiles.rows), len(tiles.columns)), visible)

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from their sizes."""
        layouts = self.layouts(kwargs)
        return Capture(layouts=layouts, seen=layouts)

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Average every crop down to its image's target grid; "enlarge" enlarges it to the tower's size again."""
        pixels = args[0] if args else kwargs["pixel_values"]
        crops = [crops_of(layout) for layout in capture.layouts]
        if mode == "enlarge":
            parts = zip(pixels.split(crops), sizes, strict=True)
            small = torch.cat([self.resized(part, size, mode) for part, size in parts])
        else:
            if len(set(sizes)) > 1:
                raise FoveateError(
                    f"images of one {self.title} call shrink to crops of one size, and {sorted(set(sizes))} were asked "
                    "for; keep a fraction, or a number per=tile, or encode the images one by one"
                )
            small = self.resized(pixels, sizes[0], mode)
            kwargs = {**kwargs, "interpolate_pos_encoding": True}
            capture.seen = tuple(self.shrunk(layout, size) for layout, size in zip(capture.layouts, sizes, strict=True))
        small = small.to(pixels.dtype)
        return ((small, *args[1:]), kwargs) if args else ((), {**kwargs, "pixel_values": small})

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat rows of whole crops: `(crops, n, D)` -> `(crops, N, D)`."""
        # The first crop of every image is the base, and all crops have one size.
        return output[:, index[0][: self.side**2].to(output.device)]

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the selected CLIP layer, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return self.in_token_order(capture.features, capture)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return self.in_token_order(capture.projected, capture)

    def structural(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the model's newline, once for each row of the tiles' grid: per image `(rows, D)`."""
        newline: Tensor = self.core.image_newline  # pyright: ignore[reportAssignmentType]
        return tuple(newline.expand(len(layout.structural), -1) for layout in capture.layouts)

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention of [CLS] `(N,)` within each token's crop, or keys `(N, D_key)`."""
        return self.in_token_order(self.crop_signal(signal, capture), capture)

    def in_token_order(self, crops: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Order values per patch of all crops `(crops, n, ...)` as the tokens of each image `(N, ...)`."""
        parts = crops.split([crops_of(layout) for layout in capture.layouts])
        return tuple(visible_values(part, layout) for part, layout in zip(parts, capture.seen, strict=True))


def crops_of(layout: Layout) -> int:
    """Return the number of crops of an image: the base and its tiles, also those that hold padding alone."""
    return 1 + sum(len(grid.rows) * len(grid.columns) for grid in layout.segments[1:])


def laid_out(crop: tuple[int, int], tiles: tuple[int, int], visible: tuple[int, int]) -> Layout:
    """Return a base and the middle of a grid of tiles with a newline after each row; sizes in tokens, rows first."""
    rows, columns = (tile_shares(*axis) for axis in zip(crop, tiles, visible, strict=True))
    return with_newlines(crop, rows, columns)


def with_newlines(crop: tuple[int, int], rows: tuple[int, ...], columns: tuple[int, ...]) -> Layout:
    """Return a base and a grid with a newline after each row, from the rows and columns that each tile gives to it."""
    base, grid = Segment(1, *crop), Segment(1, sum(rows), sum(columns), rows, columns)
    newlines = (
        Structural(end + row, end - grid.w, end)
        for row, end in enumerate(range(base.count + grid.w, base.count + grid.count + 1, grid.w))
    )
    return Layout((base, grid), tuple(newlines))


def visible_values(crops: Tensor, layout: Layout) -> Tensor:
    """Return the values of the tokens of one image, from those of the patches of its crops: `(crops, n, ...)`."""
    return crops.flatten(0, 1)[_patches(layout).to(crops.device)]


def tile_shares(length: int, tiles: int, visible: int) -> tuple[int, ...]:
    """Return how many tokens each of several tiles of one length gives to the `visible` tokens in their middle.

    >>> tile_shares(24, 2, 36), tile_shares(24, 3, 24), tile_shares(7, 1, 2)
    ((18, 18), (0, 24, 0), (2,))
    """
    begin = (tiles * length - visible) // 2
    edges = range(0, tiles * length + 1, length)
    return tuple(max(0, min(begin + visible, stop) - max(begin, start)) for start, stop in pairwise(edges))


@remembered
def _patches(layout: Layout) -> Tensor:
    """Return the number of each content token's patch, counted through all crops of its image: `(N,)` int64."""
    base, grid = layout.segments
    tiles = len(grid.rows), len(grid.columns)
    whole = tiles[0] * base.h, tiles[1] * base.w
    numbers = torch.arange(tiles[0] * tiles[1] * base.count).view(*tiles, base.h, base.w).transpose(1, 2).reshape(whole)
    top, left = ((all_of - part) // 2 for all_of, part in zip(whole, (grid.h, grid.w), strict=True))
    visible = numbers[top : top + grid.h, left : left + grid.w]
    return torch.cat([torch.arange(base.count), visible.flatten() + base.count])
