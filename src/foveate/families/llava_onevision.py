"""LLaVA-OneVision: SigLIP over the whole image and over its tiles, scaled down if many.  Li et al. 2024, 2408.03326."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import read_field
from foveate.families.family import Capture
from foveate.families.frame_clips import FrameClips
from foveate.families.llava_next import crops_of, laid_out, tile_shares, visible_values, with_newlines
from foveate.families.registry import register_family
from foveate.families.siglip import SiglipCrops
from foveate.tokens import Layout, Segment, Structural

if TYPE_CHECKING:
    from torch import Tensor

_TOO_LARGE = 1.1
"""By how much the side of a square of the allowed tokens may be exceeded before the grid of tiles is scaled down."""


@register_family
class LlavaOnevision(SiglipCrops, FrameClips):
    """LLaVA-OneVision with a SigLIP tower: the base and tiles of LLaVA-NeXT, with a newline after each row of tiles.

    A grid of tiles that holds more tokens than `vision_aspect_ratio` allows ("anyres_max_9": as many as 9 tiles) is
    scaled down after the projector, bilinearly. Signals are scaled down as features are, and a token belongs to the
    tile that its centre is in. At `@features` such an image is refused: the projector reads patches that are no tokens.

    Images of a prompt with several images (`batch_num_images`) are not tiled: each is its base and one newline.

    Frames of a clip are not tiled either: after the projector each is halved on both sides, bilinearly, and signals are
    scaled as features are. One newline ends the clip. All clips of a call have the same number of frames.
    """

    name = "llava_onevision"
    title = "LLaVA-OneVision"
    core_class = "LlavaOnevisionModel"
    pixel_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    encoder_arguments: ClassVar[tuple[str, ...]] = ("image_sizes", "batch_num_images", "vision_aspect_ratio")
    clip_places = ("input", "decoder")
    checkpoints: ClassVar[tuple[str, ...]] = (
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-0.5b-si-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-chat-hf",
        "llava-hf/llava-onevision-qwen2-7b-si-hf",
        "llava-hf/llava-onevision-qwen2-72b-ov-hf",
        "llava-hf/llava-onevision-qwen2-72b-ov-chat-hf",
    )

    def check_config(self) -> None:
        """Check the encoder, and that the configuration says how many tokens the tiles of an image may have."""
        super().check_config()
        ratio = read_field(self.config, "vision_aspect_ratio")
        if not re.fullmatch(r"anyres_max_[1-9]\d*", str(ratio)):
            raise UnsupportedFamily(
                f"{self.title} with vision_aspect_ratio={ratio!r} is not supported; 'anyres_max_' and a number is"
            )

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, the layer of the tower that is read, and how many tokens the tiles of an image may have."""
        return (*super().encoder_inputs, "vision_aspect_ratio")

    # Layouts

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return base and tiles for each `(height, width)` of `image_sizes`; base and newline where they aren't tiled.

        Raises:
            FoveateError: an input is missing, `batch_num_images` counts other images than `image_sizes`, or the call
                allows images another number of tokens than the configuration does.
        """
        ratio, own = inputs.get("vision_aspect_ratio"), self.config.vision_aspect_ratio
        if ratio not in (None, own):
            raise FoveateError(
                f"the call has vision_aspect_ratio {ratio!r}, and the model's configuration has {own!r}; write "
                f"{ratio!r} into model.config.vision_aspect_ratio before apply, and give the processor the same"
            )
        sizes = self.image_sizes(inputs)
        tiled = zip(sizes, self._tiled(inputs, len(sizes)), strict=True)
        return tuple(self.image_layout(*size) if alone else _not_tiled(self.side, self.side) for size, alone in tiled)

    def _tiled(self, inputs: Mapping[str, Any], images: int) -> list[bool]:
        """Return for each image whether it is tiled, as the only one of its prompt."""
        counts = inputs.get("batch_num_images")
        if counts is None:
            return [True] * images
        numbers: list[int] = torch.as_tensor(counts).flatten().tolist()
        if sum(numbers) != images:
            raise FoveateError(
                f"batch_num_images counts {sum(numbers)} images ({', '.join(map(str, numbers))}), and image_sizes "
                f"{images}; pass both as the processor returned them"
            )
        return [number == 1 for number in numbers for _ in range(number)]

    def image_layout(self, height: int, width: int) -> Layout:
        """Return base and tiles of the only image of a prompt, of `height` x `width` pixels before any resizing."""
        tiles, visible = self.tiles_of(height, width)
        most = int(self.config.vision_aspect_ratio.rpartition("_")[2])
        ratio = sqrt(visible[0] * visible[1] / (most * self.side**2))
        if ratio <= _TOO_LARGE:
            return laid_out((self.side, self.side), tiles, visible)
        rows, columns = (
            _scaled_shares(tile_shares(self.side, number, length), int(length // ratio))
            for number, length in zip(tiles, visible, strict=True)
        )
        if not rows or not columns:
            raise FoveateError(
                f"an image of {width} x {height} pixels is too narrow for {self.title}: nothing of its tiles is left "
                "after they are scaled down; crop it, or make its shorter side longer"
            )
        return with_newlines((self.side, self.side), rows, columns)

    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the grid of a clip, whose frames all have one size, and its newline."""
        side = ceil(self.side / 2)
        grid = Segment(frames, side, side)
        return Layout((grid,), (Structural(grid.count, 0, grid.count),), times=tuple(range(frames)))

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return a layout with `size` tokens per crop; the tiles' grid shrinks in proportion, rounded down."""
        if len(layout.segments) == 1:
            return _not_tiled(*size)
        grid = layout.segments[1]
        if self._is_cut(layout):
            return super().shrunk(layout, size)
        rows, columns = (
            _scaled_shares(shares, max(1, sum(shares) * length // self.side))
            for shares, length in zip((grid.rows, grid.columns), size, strict=True)
        )
        return with_newlines(size, rows, columns)

    def _is_cut(self, layout: Layout) -> bool:
        """Return whether the tiles' grid is what is left of the tiles without padding, and not scaled down."""
        grid = layout.segments[1]
        axes = ((grid.h, grid.rows), (grid.w, grid.columns))
        return all(tile_shares(self.side, len(shares), length) == shares for length, shares in axes)

    # Features and signals

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from their sizes, and note what of their tiles is no padding."""
        capture = super().tower_call(args, kwargs)
        images = zip(self.image_sizes(kwargs), capture.layouts, strict=True)
        capture.extra["visible"] = [
            self.tiles_of(*size)[1] if len(layout.segments) > 1 else None for size, layout in images
        ]
        return capture

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the selected SigLIP layer, per image `(N, D_encoder)`.

        Raises:
            FoveateError: the tiles of an image are scaled down after the projector.
        """
        for layout in capture.layouts:
            if len(layout.segments) > 1 and not self._is_cut(layout):
                most = self.config.vision_aspect_ratio.rpartition("_")[2]
                raise FoveateError(
                    f"an image has more than {most} tiles, which {self.title} scales down after its projector, so no "
                    "step can act at @features; use @input, or smaller images"
                )
        return super().features(capture)

    def in_token_order(self, crops: Tensor, capture: Capture) -> tuple[Tensor, ...]:
        """Order values per patch of all crops `(crops, n, ...)` as the tokens of each image `(N, ...)`."""
        if any(layout.is_clip for layout in capture.layouts):
            # The model scales features, all frames in one call; a value per patch goes along as a feature of its own.
            scaled = self.core.apply_pooling(crops.flatten(2) if crops.ndim > 2 else crops[..., None])  # pyright: ignore
            of_clips = scaled.reshape(len(capture.layouts), -1, *crops.shape[2:])
            return of_clips.unbind(0)
        parts = crops.split([crops_of(layout) for layout in capture.layouts])
        images = zip(parts, capture.seen, capture.extra["visible"], strict=True)
        return tuple(self._of_image(part, seen, visible) for part, seen, visible in images)

    def _of_image(self, crops: Tensor, seen: Layout, visible: tuple[int, int] | None) -> Tensor:
        if visible is None:
            return crops.flatten(0, 1)
        base, grid = seen.segments
        rows, columns = (
            max(1, length * side // self.side) for length, side in zip(visible, (base.h, base.w), strict=True)
        )
        tiles = len(grid.rows), len(grid.columns)
        values = visible_values(crops, laid_out((base.h, base.w), tiles, (rows, columns)))
        if (rows, columns) == (grid.h, grid.w):
            return values
        whole, parts = values[: base.count], values[base.count :]
        # The model scales planes, one after another in memory.
        planes = parts.reshape(len(parts), -1).T.unflatten(1, (rows, columns))[None].contiguous()
        scaled = torch.nn.functional.interpolate(planes, size=(grid.h, grid.w), mode="bilinear")[0].flatten(1).T
        return torch.cat([whole, scaled.reshape(-1, *parts.shape[1:])])


def _not_tiled(rows: int, columns: int) -> Layout:
    """Return the layout of an image in a prompt with several: its base and one newline."""
    count = rows * columns
    return Layout((Segment(1, rows, columns),), (Structural(count, 0, count),))


def _scaled_shares(shares: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Return how many of `length` tokens have their centre in each tile, if these shares of tokens become so many.

    >>> _scaled_shares((27, 27, 27, 27), 81), _scaled_shares((10, 27, 10), 20), _scaled_shares((4,), 0)
    ((20, 20, 21, 20), (4, 12, 4), ())
    """
    if not length:
        return ()
    whole = sum(shares)
    # Token i has its centre at (2 i + 1) / (2 length) of the whole.
    edges = [-(-(2 * edge * length - whole) // (2 * whole)) for edge in accumulate(shares, initial=0)]
    return tuple(stop - start for start, stop in pairwise(edges))
