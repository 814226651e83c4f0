"""Load the fonts that come with foveate; test images and pictures of plans are drawn with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from PIL import ImageFont

__all__ = ["FONTS", "font"]

FONTS: Final[tuple[str, ...]] = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
"""Their names. They hold printable ASCII only; their licence is in LICENSE beside them."""


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font.

    Args:
        name: one of `FONTS`.
        size: in pixels.

    >>> font("DejaVuSans", 12).size
    12
    """
    path = Path(__file__).with_name(f"{name}.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
