"""Idefics3: a SigLIP encoder over tiles of an image, each with its row and column before it.  Laurençon et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number
from foveate.families.family import Capture
from foveate.families.registry import register_family
from foveate.families.siglip_tiles import SiglipTiles
from foveate.families.tiling import TileGrid
from foveate.tokens import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn

_LONGEST = 4
"""Tiles along the longer side of an image, as the processors of all released models have it."""
_LARGEST = 4096
"""Pixels along the longer side of the largest image that the processor cuts."""
_LABEL = 16
"""The most tokens that a tile's label has, such as <row_1_col_2>, where the tokenizer has no token for it."""


@register_family
class Idefics3(SiglipTiles):
    """Idefics3 with a SigLIP encoder: an image in tiles and then as a whole, no [CLS].

    Before each tile the prompt names its row and column, and before the whole image <global-img>. This text is no part
    of the image, and always stays. An image ends where the text before a tile is that before the prompt's last one. In
    a prompt without such text each tile is an image. Position ids are one-dimensional.
    """

    name = "idefics3"
    title = "Idefics3"
    checkpoints = (
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "HuggingFaceTB/SmolVLM-Instruct",
    )
    core_class = "Idefics3Model"
    since = (5, 20)  # before, images are a tensor of tiles, not a list
    encoders = ("idefics3_vision", "idefics3_vision_model")
    words_between_tiles = True
    pixel_axes = ("rows", "tiles", "channels", "height", "width")
    pixel_inputs = ("pixel_values", "pixel_attention_mask")
    # The tower sees the tiles of all prompts, without those that fill up shorter rows.
    encoder_arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)

    def check_config(self) -> None:
        """Check that the encoder is the model's own."""
        self.check_encoder()

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return read_number(self.config, "scale_factor")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels, enlarged to four tiles along its longer side."""
        rows, columns = _cut(height, width, self.edge)
        return self.tiled(TileGrid(rows * columns + 1, rows, columns), self.tile_side)

    # Places in the model

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.core.text_model  # pyright: ignore[reportReturnType]

    @property
    def tower(self) -> nn.Module:
        """The SigLIP encoder."""
        return self.core.vision_model  # pyright: ignore[reportReturnType]

    @property
    def feature_module(self) -> nn.Module:
        """The projector's matrix, which reads the patches of a token side by side."""
        return self.core.connector.modality_projection  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The connector: pixel shuffle and projector."""
        return self.core.connector  # pyright: ignore[reportReturnType]

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The connector."""
        return (self.projected_module,)

    # Tiles

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the tiles of each row of the prompt; tiles of zeros fill up shorter rows, and the model drops them."""
        pixels: Tensor = inputs["pixel_values"]
        return (pixels != 0).flatten(2).any(dim=2).sum(dim=1).tolist()

    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Read how images were cut from the text before each tile."""
        grids: list[TileGrid] = []
        for row in input_ids.tolist():
            found = _grids_of_row(row, self.image_token, tokens[0] if tokens else 1)
            if found is None:
                return None
            grids += found
        return grids if sum(grid.tiles for grid in grids) == len(tiles) else None

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Average the pixels of each tile down to its target grid; "enlarge" enlarges them to their size again."""
        found = super().resized_inputs(inputs, layouts, sizes, mode)
        mask = inputs.get("pixel_attention_mask")
        if mask is not None:
            size = found["pixel_values"].shape[-2:]
            found["pixel_attention_mask"] = torch.nn.functional.interpolate(
                mask.float(), size=size, mode="nearest-exact"
            ).to(mask.dtype)
        return found

    # Encoding

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Count the tiles of each row of the prompt, and note which patches are padding."""
        capture = super().tower_call(args, kwargs)
        capture.extra["mask"] = kwargs.get("patch_attention_mask")
        return capture

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's matrix."""
        return self.feature_module(features)

    # Signals

    def check_attention(self, capture: Capture) -> None:
        """Refuse tiles with padding, whose patches attend to some of the others alone."""
        mask: Tensor | None = capture.extra["mask"]
        if mask is not None and not bool(mask.all()):
            raise FoveateError(
                f"a tile holds padding, where attention of {self.title} is not known; let the processor cut images "
                "into whole tiles (do_image_splitting)"
            )


def _cut(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return into how many rows and columns of tiles the processor cuts an image; (0, 0) if it doesn't cut it.

    >>> _cut(480, 640, 364), _cut(1, 4000, 364)
    ((3, 4), (1, 4))
    """
    longest = _LONGEST * edge
    shape = width / height
    # Lengths are rounded as the processor rounds them: it makes the shorter one even.
    shorter = int(longest / shape) if width >= height else int(longest * shape)
    shorter = max(1, shorter + shorter % 2)
    if longest > _LARGEST:
        shape = longest / shorter
        longest, shorter = _LARGEST, max(1, int(_LARGEST / shape))
    across = ceil(longest / edge) * edge
    shape = longest / shorter if width >= height else shorter / longest
    other = ceil(int(across / shape if width >= height else across * shape) / edge)
    sides = (other, across // edge) if width >= height else (across // edge, other)
    return sides if max(sides) > 1 else (0, 0)


def _grids_of_row(ids: list[int], placeholder: int, tokens: int) -> list[TileGrid] | None:
    """Return how the images of one row of a prompt were cut; None if a run of placeholders is not whole tiles.

    A mark stands before and after each image, and before each tile. Between it and a tile stands the tile's label.
    Within a row of tiles the next mark follows at once, and after a row of tiles comes a line break.

    >>> mark, image = 1, 9
    >>> row = [5, mark, 11, image, image, mark, 12, image, image, 7, mark, 10, image, image, mark, 6]
    >>> _grids_of_row(row, image, 2)
    [TileGrid(tiles=3, rows=1, columns=2)]

    Args:
        ids: of the row.
        placeholder: the id of visual tokens.
        tokens: of one tile.
    """
    tiles: list[tuple[int, int]] = []
    begin = 0
    while placeholder in ids[begin:]:
        begin = ids.index(placeholder, begin)
        end = next((at for at in range(begin, len(ids)) if ids[at] != placeholder), len(ids))
        if (end - begin) % tokens:
            return None
        tiles += [(first, first + tokens) for first in range(begin, end, tokens)]
        begin = end
    if not tiles:
        return []
    mark = ids[tiles[-1][1]] if tiles[-1][1] < len(ids) else None
    labels: list[tuple[int, ...]] = []
    breaks: list[tuple[int, ...]] = []
    before = 0
    for begin, end in tiles:
        text = ids[before:begin]
        at = max((place for place, token in enumerate(text) if token == mark), default=len(text))
        labels.append(tuple(text[at + 1 :]))
        breaks.append(tuple(text[:at]))
        before = end
    grids: list[TileGrid] = []
    first = 0
    for number, label in enumerate(labels):
        if label == labels[-1]:
            grids += _image(labels[first : number + 1], breaks[first + 1 : number + 1])
            first = number + 1
    return grids


def _image(labels: Sequence[tuple[int, ...]], breaks: Sequence[tuple[int, ...]]) -> list[TileGrid]:
    """Return how tiles up to a whole image were cut, from their labels and what stands between them.

    Tiles that are not labelled as those of one image are an image each.
    """
    *tiles, _ = labels
    columns = next((number for number, text in enumerate(breaks, start=1) if text), 0)
    ends = breaks[columns - 1 : -1 : columns] if columns else ()
    one_image = (
        bool(columns)
        and len(tiles) % columns == 0
        and all(0 < len(label) <= _LABEL for label in labels)
        and len(set(tiles)) == len(tiles)
        and all(bool(text) == (number % columns == 0) for number, text in enumerate(breaks, start=1))
        and len(set(ends)) <= 1
    )
    return [TileGrid(len(labels), len(tiles) // columns, columns)] if one_image else [TileGrid()] * len(labels)
