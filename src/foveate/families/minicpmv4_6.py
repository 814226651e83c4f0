"""MiniCPM-V 4.6: an encoder of an image and of its slices, which merges patches between its layers.  OpenBMB 2026."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_number
from foveate.families.pixels import resized_pixels
from foveate.families.registry import register_family
from foveate.families.shaped_tiles import ShapedTiles
from foveate.families.tiling import TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.tokens import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_SLICES = 9
"""Slices of an image, without the whole one, as the processors of all released models have it."""
_MARKS = 2
"""Tokens between two slices of one row: what ends the one and begins the other."""
_MODES = {"16x": 4, "4x": 2}
"""Patches along one side of a visual token, by `downsample_mode`."""


@register_family
class MiniCpmV46(ShapedTiles):
    """MiniCPM-V 4.6: the whole image, then slices of it, each at its own shape, no [CLS].

    After one of the encoder's layers a window of 2 x 2 patches becomes one row, and after the last one the projector
    merges 2 x 2 of those, so a visual token is 4 x 4 patches (2 x 2 with `downsample_mode="4x"`, which leaves out the
    first of the two). The prompt has a mark before and after the whole image and each slice, and a line break
    between rows of slices. This text is no part of the image, and always stays. An image begins where the mark before
    it is that before the prompt's first one. Position ids are one-dimensional.

    Encoder signals are those of patches up to the layer that is followed by merging, and of merged ones after it.
    "exact" resizes an image by averaging its pixels down to a smaller grid, as if the processor had been given a
    smaller image; a share is of each slice. "enlarge" enlarges it to its size again, which saves no token.

    Most layers of the decoder are linear attention, so steps act before the decoder.
    """

    name = "minicpmv4_6"
    title = "MiniCPM-V 4.6"
    checkpoints: ClassVar[tuple[str, ...]] = ("openbmb/MiniCPM-V-4.6",)
    core_class = "MiniCPMV4_6Model"
    encoders = ("minicpmv4_6_vision",)
    example: ClassVar[Mapping[str, Any]] = {"image_token_id": 1}
    places = ("pixels", "features", "input")
    outside_encoder = "windows of patches are merged between its encoder's layers, which other merging would break up"
    resize_modes = ("exact", "enlarge")
    words_between_tiles = True
    whole_first = True
    all_logits = True
    pixel_axes = ("images", "channels", "height of a patch", "width of all patches")
    pixel_inputs = ("pixel_values", "target_sizes")

    def check_config(self) -> None:
        """Check how patches are merged, and whether steps can act in the decoder.

        Raises:
            UnsupportedFamily: they are merged in another way than in the released models.
        """
        self.check_encoder()
        config, vision = self.config, self.config.vision_config
        if config.downsample_mode not in _MODES:
            raise UnsupportedFamily(
                f"{self.title} with downsample_mode {config.downsample_mode!r} is not supported; "
                f"{' and '.join(map(repr, _MODES))} are"
            )
        for holder, name, expected in (
            (config, "merge_kernel_size", [2, 2]),
            (config, "merger_times", 1),
            (vision, "window_kernel_size", [2, 2]),
        ):
            value = getattr(holder, name)
            value = list(value) if isinstance(value, tuple) else value
            if value != expected:
                raise UnsupportedFamily(f"{self.title} with {name} {value} is not supported; {expected} is")
        depth, layer = read_number(vision, "num_hidden_layers"), vision.insert_layer_id
        if not isinstance(layer, int) or not 0 <= layer < depth:
            raise UnsupportedFamily(
                f"{self.title} that merges patches after layer {layer} of its encoder (insert_layer_id) is not "
                f"supported; it must be one of its {depth} layers, counted from 0"
            )
        if self.is_plain:
            self.places = (*type(self).places, "decoder")  # pyright: ignore[reportAttributeAccessIssue]

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return _MODES[self.config.downsample_mode]

    def merged_in(self, layer: int) -> int:
        """Return the rows along one side of a visual token in an encoder layer: fewer after its windows are merged."""
        return 2 if layer > self.config.vision_config.insert_layer_id else self.merge

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def edge(self) -> int:
        """Pixels along one side of a square slice."""
        return read_number(self.config, "image_size")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the whole image of `height` x `width` pixels, and its slices if it is large."""
        cut = _sliced(height, width, self.edge)
        rows, columns = cut or (0, 0)
        shapes = [_fitted(height, width, self.edge, self.token_side, enlarge=cut is None)]
        if cut is not None:
            down, across = max(round(height / rows), 1), max(round(width / columns), 1)
            shapes += [_fitted(down, across, self.edge, self.token_side, enlarge=True)] * (rows * columns)
        return self.of_tiles(TileGrid(len(shapes), rows, columns), shapes)

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes, and those of the projector."""
        vision = self.config.vision_config
        return VisionShape.read(
            self.config,
            self.patch,
            merge=self.merge,
            merged_after=vision.insert_layer_id if self.merge > 2 else None,
            projector_widths=(4 * read_number(vision, "hidden_size"),),
        )

    # Places in the model

    @property
    def tower(self) -> nn.Module:
        """The encoder, with the merger between its layers."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each encoder layer."""
        return [layer.self_attn for layer in self.tower.encoder.layers]  # pyright: ignore

    @property
    def feature_module(self) -> nn.Module:
        """The projector's norm and MLP, which read 2 x 2 rows of the encoder side by side."""
        return self.core.merger.mlp[-1]  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The same: it is called for each slice."""
        return self.feature_module

    def joined(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the pixel inputs of several prompts: patches lie side by side."""
        along = {"pixel_values": 3, "target_sizes": 0}
        return {name: torch.cat([each[name] for each in images], dim=along.get(name, 0)) for name in images[0]}

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and how much they are merged."""
        return (*self.pixel_inputs, "downsample_mode")

    # Slices

    def tile_shapes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return rows and columns of tokens of each slice, from `target_sizes`, which counts its patches.

        Raises:
            FoveateError: an input is missing, or doesn't fit the others.
        """
        mode = inputs.get("downsample_mode") or self.config.downsample_mode
        # The tower is told in another way.
        if "use_vit_merger" in inputs:
            mode = "16x" if inputs["use_vit_merger"] else "4x"
        if mode != self.config.downsample_mode:
            raise FoveateError(
                f"the call has downsample_mode {mode!r}, and the model's configuration has "
                f"{self.config.downsample_mode!r}; write {mode!r} into model.config.downsample_mode before apply, and "
                "give the processor the same"
            )
        pixels, sizes = (inputs.get(name) for name in self.pixel_inputs)
        if not isinstance(pixels, torch.Tensor) or not isinstance(sizes, torch.Tensor):
            raise FoveateError(f"{self.title} needs {', '.join(self.pixel_inputs)}; pass what its processor returned")
        if pixels.ndim != len(self.pixel_axes) or pixels.shape[2] != self.patch or sizes.shape[1:] != (2,):
            raise FoveateError(
                f"{self.title} takes pixel_values (1, channels, {self.patch}, width of all patches) and target_sizes "
                f"(slices, 2), and {tuple(pixels.shape)} and {tuple(sizes.shape)} came; pass what its processor "
                "returned"
            )
        shapes: list[tuple[int, int]] = []
        for rows, columns in sizes.tolist():
            if rows % self.merge or columns % self.merge or rows < 1 or columns < 1:
                raise FoveateError(
                    f"a slice of {columns} x {rows} patches came, and {self.title} takes slices whose sides are "
                    f"multiples of {self.merge} patches; pass what its processor returned"
                )
            shapes.append((rows // self.merge, columns // self.merge))
        patches = sum(rows * columns for rows, columns in shapes) * self.merge**2
        if pixels.shape[3] != patches * self.patch:
            raise FoveateError(
                f"target_sizes tells of {patches} patches, and pixel_values are {pixels.shape[3]} pixels wide, which "
                f"is not {self.patch} for each; pass what its processor returned"
            )
        return shapes

    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Read how images were cut from the text before each slice."""
        lengths, grids = iter(tokens), list[TileGrid]()
        for ids in input_ids.tolist():
            found = _slices(ids, self.image_token, lengths)
            if found is None:
                return None
            grids += _grids_of_row(ids, found)
        return grids if sum(grid.tiles for grid in grids) == len(tiles) else None

    # Resizing

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout of an image whose first grid was resized to `size`; the others shrink in proportion."""
        first = layout.segments[0]
        sizes = [(max(1, tile.h * size[0] // first.h), max(1, tile.w * size[1] // first.w)) for tile in layout.segments]
        return _resized(layout, sizes)

    def shrunk_by(self, layout: Layout, shrink: Callable[[Layout], tuple[int, int]]) -> Layout:
        """Return the layout of an image whose slices shrink each by itself, where that is what is asked for."""
        alone = [shrink(Layout((tile,))) for tile in layout.segments]
        if alone[0] != shrink(layout):
            return super().shrunk_by(layout, shrink)
        return _resized(layout, alone)

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each slice down to its target grid; "enlarge" enlarges them to their size again."""
        pixels, side = inputs["pixel_values"], self.token_side
        shapes: list[tuple[int, int]] = inputs["target_sizes"].tolist()
        slices = pixels[:1].split([rows * columns * self.patch for rows, columns in shapes], dim=3)
        small = [
            self._patches(resized_pixels(self._picture(each, shape), (rows * side, columns * side), mode == "enlarge"))
            for each, shape, (rows, columns) in zip(slices, shapes, sizes, strict=True)
        ]
        found = {**inputs, "pixel_values": torch.cat(small, dim=3).to(pixels.dtype)}
        if mode != "enlarge":
            found["target_sizes"] = inputs["target_sizes"].new_tensor(sizes) * self.merge
        return found

    def _picture(self, patches: Tensor, shape: tuple[int, int]) -> Tensor:
        """Put the patches `(1, channels, patch, P patch)` of a slice together: `(1, channels, height, width)`."""
        grid = patches.unflatten(3, (*shape, self.patch))
        return grid.transpose(2, 3).flatten(4).flatten(2, 3)

    def _patches(self, picture: Tensor) -> Tensor:
        """Cut a picture `(1, channels, height, width)` into patches `(1, channels, patch, P patch)`."""
        return picture.unflatten(2, (-1, self.patch)).transpose(2, 3).flatten(3)

    # Features

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's norm and MLP."""
        projector: Any = self.feature_module
        return projector.linear_2(projector.act(projector.linear_1(projector.pre_norm(features))))


def _resized(layout: Layout, sizes: Sequence[tuple[int, int]]) -> Layout:
    """Return a layout whose grids are resized."""
    tiles = tuple(
        replace(tile, h=rows, w=columns) for tile, (rows, columns) in zip(layout.segments, sizes, strict=True)
    )
    return Layout(tiles, runs=tuple(tile.count for tile in tiles) if layout.runs else ())


def _sliced(height: int, width: int, edge: int) -> tuple[int, int] | None:
    """Return into how many rows and columns of slices the processor cuts an image; None if it doesn't cut it.

    >>> _sliced(480, 640, 448), _sliced(448, 448, 448), _sliced(1080, 1920, 448)
    ((1, 2), None, (2, 4))
    """
    area = min(math.ceil(height * width / edge**2), _MOST_SLICES)
    if area <= 1:
        return None
    shape = math.log(width / height)
    best, nearest = (1, 1), math.inf
    for slices in range(max(area - 1, 2), min(area + 1, _MOST_SLICES) + 1):
        for rows in (each for each in range(1, slices + 1) if slices % each == 0):
            distance = abs(shape - math.log(slices // rows / rows))
            if distance < nearest or (distance == nearest and rows > best[0]):
                best, nearest = (rows, slices // rows), distance
    return best


def _fitted(height: float, width: float, edge: int, side: int, enlarge: bool) -> tuple[int, int]:
    """Return the rows and columns of tokens of `side` pixels to which a picture is resized.

    >>> _fitted(480, 640, 448, 56, False), _fitted(30, 40, 448, 56, True), _fitted(30, 40, 448, 56, False)
    ((7, 9), (7, 9), (1, 1))
    """
    if height * width > edge**2 or enlarge:
        shape = width / height
        height = int(edge / math.sqrt(shape))
        width = int(height * shape)
    return max(round(height / side), 1), max(round(width / side), 1)


def _slices(ids: Sequence[int], placeholder: int, lengths: Iterator[int]) -> list[tuple[int, int]] | None:
    """Return where each slice of a row begins and ends; None if a run of placeholders is not whole slices."""
    found: list[tuple[int, int]] = []
    place = 0
    while place < len(ids):
        if ids[place] != placeholder:
            place += 1
            continue
        length = next(lengths, 0)
        if not length or list(ids[place : place + length]) != [placeholder] * length:
            return None
        found.append((place, place + length))
        place += length
    return found


def _grids_of_row(ids: Sequence[int], slices: Sequence[tuple[int, int]]) -> list[TileGrid]:
    """Return how the images of one row of a prompt were cut.

    >>> image, end, slice, slice_end, line, x = 1, 2, 3, 4, 5, 9
    >>> ids = [image, x, end, slice, x, slice_end, slice, x, slice_end, line, slice, x, slice_end, slice, x, slice_end]
    >>> _grids_of_row(ids, [(place, place + 1) for place, token in enumerate(ids) if token == x])
    [TileGrid(tiles=5, rows=2, columns=2)]

    Args:
        ids: of the row.
        slices: where each begins and ends, the whole images among them.
    """
    images: list[list[int]] = []
    for number, (begin, _) in enumerate(slices):
        gap = begin - slices[number - 1][1] if number else 0
        if number and _MARKS <= gap <= _MARKS + 1 and ids[begin - 1] != ids[slices[0][0] - 1]:
            images[-1].append(gap)
        else:
            images.append([])
    return [_grid(gaps) for gaps in images]


def _grid(gaps: Sequence[int]) -> TileGrid:
    """Return how an image was cut, from the numbers of tokens before each of its slices.

    Slices that don't stand in rows of one length are slices of nowhere.
    """
    if not gaps:
        return TileGrid()
    after = [number for number, gap in enumerate(gaps) if gap > _MARKS]
    columns = after[0] if after else len(gaps)
    in_rows = columns > 0 and after == list(range(columns, len(gaps), columns)) and len(gaps) % columns == 0
    return TileGrid(len(gaps) + 1, len(gaps) // columns, columns) if in_rows else TileGrid(len(gaps) + 1)
