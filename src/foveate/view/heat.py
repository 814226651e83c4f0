"""Draw one number per token over the image: attention maps, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from PIL import Image

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.view.overlay import draw_sheet, over_image

__all__ = ["HeatMap", "draw_maps", "draw_values"]

_COLOURS: Final = ((8, 12, 36), (66, 30, 110), (168, 50, 96), (240, 120, 50), (255, 232, 140))
"""From the lowest to the highest value: dark to light, so that it reads without colours as well."""
_SHARE: Final = 0.72
"""How much of a picture its map is; the rest is the image, in grey."""


@dataclass(frozen=True)
class HeatMap:
    """One map to draw, with its captions.

    Attributes:
        layout: of the image's tokens.
        values: one number per token, at least 0; the largest is drawn brightest, zero darkest.
        title: the larger caption.
        note: the smaller one under it.
    """

    layout: Layout
    values: Float[np.ndarray, " N"]
    title: str = ""
    note: str = ""


def draw_maps(image: Image.Image, maps: Sequence[HeatMap], heading: str = "", side: int | None = None) -> Image.Image:
    """Draw maps over one image, side by side with captions.

    Each map has a scale of its own, from zero to its highest value, drawn by the square root so that small values
    show.
    Of an image of several grids, the largest is drawn.

    Args:
        image: mode "RGB", what the encoder saw.
        maps: at least one; up to four stand in a row.
        heading: a line above all.
        side: the longer side of one map in pixels; None chooses by the number of maps.

    Returns:
        Mode "RGB".

    Raises:
        FoveateError: there is no map, or one has another number of values than its layout has tokens.

    >>> from foveate.tokens import Segment
    >>> layout = Layout((Segment(1, 2, 3),))
    >>> draw_maps(Image.new("RGB", (90, 60)), [HeatMap(layout, np.arange(6.0))], side=120).mode
    'RGB'
    """
    check_kind("image", image, Image.Image, "a PIL image")
    maps = listed("maps", maps, "a list of HeatMaps")
    if not maps:
        raise FoveateError("there is no map to draw; give at least one")
    side = side or {1: 672, 2: 528, 3: 408}.get(len(maps), 300)
    drawn = [_largest(image, one, side) for one in maps]
    return draw_sheet(drawn, [(one.title, one.note) for one in maps], heading, side)


def draw_values(
    image: Image.Image, layout: Layout, values: Float[np.ndarray, " N"], side: int = 672
) -> list[Image.Image]:
    """Draw one map over one image without captions, each grid of the image by itself.

    All grids have one scale, as `draw_maps` says.

    Args:
        image: mode "RGB", what the encoder saw, any size.
        layout: of the image.
        values: of its content tokens, at least 0.
        side: the longer side of the largest grid in pixels; others are half as large.

    Returns:
        One picture, mode "RGB", for each grid of the image.

    Raises:
        FoveateError: there are more or fewer values than tokens.

    >>> from foveate.tokens import Segment
    >>> [one] = draw_values(Image.new("RGB", (8, 8), "white"), Layout((Segment(1, 1, 2),)), np.array([0.0, 1.0]), 8)
    >>> one.getpixel((0, 0)) < one.getpixel((7, 0))
    True
    """
    shares = _shares(layout, values)
    most = max(share.size for share in shares)
    return [_draw(image, share, side if share.size == most else side // 2) for share in shares]


def _largest(image: Image.Image, one: HeatMap, side: int) -> Image.Image:
    """Draw the largest grid of a map."""
    return _draw(image, max(_shares(one.layout, one.values), key=np.size), side)


def _shares(layout: Layout, values: Float[np.ndarray, " N"]) -> list[Float[np.ndarray, "H W"]]:
    """Return the values of each grid of an image, as shares of the largest one of all grids."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (layout.content,):
        raise FoveateError(f"a map has {values.size} values, and its image {layout.content} tokens")
    highest = max(float(values.max()), 1e-30)
    return [values[grid] / highest for grid in over_image(layout.segments)]


def _draw(image: Image.Image, shares: np.ndarray, side: int) -> Image.Image:
    """Draw values from 0 to 1, one for each place of a grid, over the whole image."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    ends = np.linspace(0, 1, len(_COLOURS))
    coloured = np.stack([np.interp(np.sqrt(shares), ends, [colour[n] for colour in _COLOURS]) for n in range(3)], -1)
    heat = Image.fromarray(coloured.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return Image.blend(grey, heat, _SHARE)
