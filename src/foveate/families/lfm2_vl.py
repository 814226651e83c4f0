"""LFM2-VL: SigLIP 2 over tiles of an image and over all of it, at its own shape.  Liquid AI 2025, arXiv 2511.23404."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, floor, isqrt, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.arranged_tiles import PREVIEW, ArrangedTiles, arrangement, nearest_shape, tiles_by_end
from foveate.families.config_fields import read_number
from foveate.families.family import Capture
from foveate.families.pixels import patches_of, picture_of, resized_pixels
from foveate.families.registry import register_family
from foveate.families.shaped_tiles import ShapedTiles
from foveate.families.tiling import TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.tokens import Layout, Segment

if TYPE_CHECKING:
    from torch import Tensor, nn

_FEWEST_TILES, _MOST_TILES = 2, 10
"""Tiles of an image, without the whole one, as the processors of all released models have it."""
_LARGE = 2.0
"""How many times the largest number of tokens an image may have without being cut into tiles."""


@register_family
class Lfm2Vl(ShapedTiles, ArrangedTiles):
    """LFM2-VL with a SigLIP 2 encoder: square tiles of large images, then the whole image at its own shape, no [CLS].

    The encoder's position embeddings are interpolated to the grid of each tile (`spatial_shapes`). The prompt names
    each tile before it. This text is no part of the image, and always stays. An image ends where what follows a tile is
    what follows the prompt's last one. How tiles lie is not among the processor's outputs: it is the arrangement in
    which they make the picture of the last tile. Tiles that make none are an image each. Position ids are
    one-dimensional.

    "exact" resizes an image by averaging its pixels down to a smaller grid, as if the processor had been given a
    smaller image; the whole image shrinks as its tiles do, and their pictures tell which image that is. So a blank page
    behind tiles of another one is refused. "enlarge" enlarges an image to its size again, which saves no token.

    Most layers of the decoder are convolutions over neighbouring columns, so steps act before the decoder.
    """

    name = "lfm2_vl"
    title = "LFM2-VL"
    core_class = "Lfm2VlModel"
    encoders = ("siglip2_vision_model",)
    # The default configuration has no convolution; all released models have them.
    example: ClassVar[Mapping[str, Any]] = {"text_config": {"model_type": "lfm2", "full_attn_idxs": [2, 5, 8]}}
    places = ("pixels", "features", "input")
    outside_encoder = "the pixel shuffle after its encoder reads blocks of patches, which merging would break up"
    resize_modes = ("exact", "enlarge")
    words_between_tiles = True
    pixel_axes = ("tiles", "patches", "values")
    pixel_inputs = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    checkpoints: ClassVar[tuple[str, ...]] = (
        "LiquidAI/LFM2-VL-450M",
        "LiquidAI/LFM2-VL-1.6B",
        "LiquidAI/LFM2-VL-3B",
        "LiquidAI/LFM2.5-VL-1.6B",
    )

    def check_config(self) -> None:
        """Check that the encoder is SigLIP 2's with a square of positions, and whether steps can act in the decoder."""
        self.check_encoder()
        positions = read_number(self.config.vision_config, "num_patches")
        if isqrt(positions) ** 2 != positions:
            raise UnsupportedFamily(f"num_patches of {self.title} is {positions}; only squares are supported")
        if self.is_plain:
            self.places = (*type(self).places, "decoder")  # pyright: ignore[reportAttributeAccessIssue]

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config, "downsample_factor")

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def edge(self) -> int:
        """Pixels along one side of a tile: in all released models, twice as many as the encoder has positions for."""
        return 2 * isqrt(read_number(self.config.vision_config, "num_patches")) * self.patch

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels, or its one grid if it isn't large."""
        most, side = self.tile_side**2, self.token_side
        whole = _resized(height, width, side, max(1, most // 4), most)
        if whole[0] * whole[1] > most:
            raise FoveateError(
                f"an image of {width} x {height} pixels is too long for {self.title}: its processor makes at most "
                f"{most} tokens of a whole image, and this one would have more; crop it, or make its shorter side "
                "longer"
            )
        rows, columns = (max(self.patch, round(length / side) * side) for length in (height, width))
        if rows * columns <= most * side**2 * _LARGE:
            return self.of_tiles(TileGrid(), [whole])
        rows, columns = nearest_shape(height, width, self.edge, _FEWEST_TILES, _MOST_TILES)
        shapes = [(self.tile_side, self.tile_side)] * (rows * columns) + [whole]
        return self.of_tiles(TileGrid(len(shapes), rows, columns), shapes)

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the patches of each tile, as many as the processor fills it up to."""
        most = (self.edge // self.patch) ** 2
        return tuple(Segment(1, 1, max(most, tile.count * self.merge**2)) for tile in layout.segments)

    def vision_shape(self) -> VisionShape:
        """Read SigLIP 2's sizes, and those of the projector."""
        between = read_number(self.config, "projector_hidden_size")
        return VisionShape.read(self.config, self.patch, merge=self.merge, projector_widths=(between,))

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The SigLIP 2 encoder."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each encoder layer."""
        return [layer.self_attn for layer in self.tower.encoder.layers]  # pyright: ignore

    @property
    def feature_module(self) -> nn.Module:
        """The first module of the projector that reads the patches of a token side by side: its norm, if it has one."""
        projector: Any = self.projected_module
        return projector.layer_norm if projector.use_layer_norm else projector.linear_1

    @property
    def projected_module(self) -> nn.Module:
        """The projector: pixel shuffle, norm and MLP."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector."""
        return (self.projected_module,)

    # Tiles

    def tile_shapes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return rows and columns of tokens of each tile, from `spatial_shapes`, which counts its patches.

        Raises:
            FoveateError: an input is missing, or doesn't fit the others.
        """
        given = [inputs.get(name) for name in self.pixel_inputs]
        pixels, shapes, mask = given
        if (
            not all(isinstance(each, torch.Tensor) for each in given)
            or shapes is None
            or pixels is None
            or mask is None
        ):
            raise FoveateError(f"{self.title} needs {', '.join(self.pixel_inputs)}; pass what its processor returned")
        if pixels.ndim != 3 or shapes.shape != (len(pixels), 2) or mask.shape != pixels.shape[:2]:
            came = ", ".join(str(tuple(each.shape)) for each in (pixels, shapes, mask))
            raise FoveateError(
                f"{self.title} takes pixel_values (tiles, patches, values), spatial_shapes (tiles, 2) and "
                f"pixel_attention_mask (tiles, patches), and {came} came; pass what its processor returned"
            )
        found: list[tuple[int, int]] = []
        for rows, columns in shapes.tolist():
            if rows % self.merge or columns % self.merge or not 0 < rows * columns <= pixels.shape[1]:
                raise FoveateError(
                    f"a tile of {columns} x {rows} patches came, and {self.title} takes tiles whose sides are "
                    f"multiples of {self.merge} patches, at most {pixels.shape[1]} of them; pass what its processor "
                    "returned"
                )
            found.append((rows // self.merge, columns // self.merge))
        return found

    def tiles_of_images(self, input_ids: Tensor, tokens: Sequence[int]) -> list[int] | None:
        """Find the last tile of each image by what follows it."""
        return tiles_by_end(input_ids, self.image_token, tokens, 1)

    def previews(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return a small picture of each tile: `(tiles, channels, 8, 8)` float32."""
        shapes: list[tuple[int, int]] = inputs["spatial_shapes"].tolist()
        pictures = zip(inputs["pixel_values"].float(), shapes, strict=True)
        return torch.stack(
            [torch.nn.functional.adaptive_avg_pool2d(picture_of(*each, self.patch)[0], PREVIEW) for each in pictures]
        )

    # Resizing

    def sizes_together(
        self, layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], inputs: Mapping[str, Any]
    ) -> Sequence[tuple[int, int]]:
        """Let a whole image that follows its tiles shrink as they do; a whole image of a tile's size is like them."""
        found = [self.shrunk(layout, size).segments[0] for layout, size in zip(layouts, sizes, strict=True)]
        small = self.previews(inputs)
        tiles: list[int] = []
        for number, layout in enumerate(layouts):
            (grid,) = layout.segments
            if self._is_tile(grid):
                tiles.append(number)
                continue
            # Tiles of an earlier image may be before its own, and with none of its own it is an image alone.
            counts = range(len(tiles), _FEWEST_TILES - 1, -1)
            if any(all(arrangement(small[tiles[-count:]], small[number])) for count in counts):
                found[number] = self._as_tiles(grid, found[number - 1])
            tiles = []
        return [(grid.h, grid.w) for grid in found]

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout of an image whose first grid was resized to `size`; the others shrink as it does.

        A square of the size of a tile stays a square.
        """
        first, *others = layout.segments
        size = (min(size), min(size)) if self._is_tile(first) else size
        small = replace(first, h=size[0], w=size[1])
        tiles = (small, *(replace(tile, h=small.h, w=small.w) if tile.part else self._as_tiles(tile, small)
                          for tile in others))  # fmt: skip
        return Layout(tiles, runs=tuple(tile.count for tile in tiles) if layout.runs else ())

    def _is_tile(self, grid: Segment) -> bool:
        return grid.h == grid.w == self.tile_side

    def _as_tiles(self, whole: Segment, tile: Segment) -> Segment:
        """Return the grid of a whole image whose tiles are resized to that of `tile`."""
        rows, columns = (max(1, length * tile.h // self.tile_side) for length in (whole.h, whole.w))
        return replace(whole, h=rows, w=columns)

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each tile down to its target grid; "enlarge" enlarges them to their size again."""
        pixels, side = inputs["pixel_values"], self.token_side
        shapes: list[tuple[int, int]] = inputs["spatial_shapes"].tolist()
        small = [
            patches_of(
                resized_pixels(picture_of(tile, shape, self.patch), (rows * side, columns * side), mode == "enlarge"),
                self.patch,
            )
            for tile, shape, (rows, columns) in zip(pixels, shapes, sizes, strict=True)
        ]
        most = max(map(len, small)) if mode != "enlarge" else pixels.shape[1]
        filled = [torch.nn.functional.pad(tile, (0, 0, 0, most - len(tile))) for tile in small]
        found = {**inputs, "pixel_values": torch.stack(filled).to(pixels.dtype)}
        if mode != "enlarge":
            counts = torch.tensor([len(tile) for tile in small], device=pixels.device)
            mask = torch.arange(most, device=pixels.device) < counts[:, None]
            found["spatial_shapes"] = inputs["spatial_shapes"].new_tensor(sizes) * self.merge
            found["pixel_attention_mask"] = mask.to(inputs["pixel_attention_mask"].dtype)
        return found

    # Features and signals

    def by_tile(self, rows: Tensor, capture: Capture) -> Sequence[Tensor]:
        """Split what the projector read or made, `(tokens, D)`, by tile."""
        counts = [height * width for height, width in capture.extra["shapes"]]
        if rows.shape[0] == sum(counts):
            return super().by_tile(rows, capture)
        # From transformers 5.24 on, one call has every tile filled up to the same number of tokens.
        filled = rows.unflatten(0, (len(counts), -1))
        return [tile[:count] for tile, count in zip(filled, counts, strict=True)]

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's norm and MLP."""
        projector: Any = self.projected_module
        features = projector.layer_norm(features) if projector.use_layer_norm else features
        return projector.linear_2(projector.act(projector.linear_1(features)))


def _resized(height: int, width: int, side: int, fewest: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of tokens of `side` pixels to which an image is resized.

    >>> _resized(480, 640, 32, 64, 256), _resized(10, 10, 32, 64, 256), _resized(3000, 4000, 32, 64, 256)
    ((13, 18), (8, 8), (13, 18))
    """
    rows, columns = (max(1, round(length / side)) for length in (height, width))
    if rows * columns > most:
        scale = sqrt(height * width / (most * side**2))
        return max(1, floor(height / scale / side)), max(1, floor(width / scale / side))
    if rows * columns < fewest:
        scale = sqrt(fewest * side**2 / (height * width))
        return ceil(height * scale / side), ceil(width * scale / side)
    return rows, columns
