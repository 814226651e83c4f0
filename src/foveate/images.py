"""Open any picture file safely, as the RGB image that a person would see."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import FoveateError

__all__ = ["LIMIT", "open_image"]

LIMIT: Final = 100_000_000
"""Pixels that an image may have at most: about 400 MB decoded."""

# By name, because Pillow knows formats whose reading starts other programs (EPS) or that hold whole documents.
_FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DEEP_GREY: Final = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I;16N": 65535.0, "I": 65535.0}


def open_image(path: str | Path) -> Image.Image:
    """Read a picture: turned upright, transparency over white, the first frame of an animation.

    The size is checked before anything is decoded.

    Args:
        path: a PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF file.

    Returns:
        An image of mode "RGB", fully read.

    Raises:
        FoveateError: there is no such file, it is no picture, it is damaged, or it has more than `LIMIT` pixels.

    >>> open_image("holiday.png")
    Traceback (most recent call last):
    foveate.errors.FoveateError: there is no image holiday.png; check the path
    """
    path = Path(path)
    if path.is_dir():
        raise FoveateError(f"{path} is a directory; name one image in it")
    if not path.exists():
        raise FoveateError(f"there is no image {path}; check the path")
    if not path.is_file():
        raise FoveateError(f"{path} is not a file; name an image file")
    try:
        with warnings.catch_warnings():
            # Pillow warns at a limit of its own; ours is checked below.
            warnings.simplefilter("ignore")
            opened = Image.open(path, formats=[name for name in _FORMATS if _known(name)])
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(path, f"{int(count[0]):,} pixels" if count else "too many pixels") from None
    except UnidentifiedImageError:
        raise FoveateError(
            f"{path} is not an image, whatever its name says; use a PNG, JPEG, WebP, GIF, BMP or TIFF file"
        ) from None
    except Exception as error:
        raise _damaged(path, error) from error
    with opened:
        width, height = opened.size
        if width * height > LIMIT:
            raise _too_large(path, f"{width:,} x {height:,} pixels")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
        except Exception as error:  # decoders fail with whatever Python error broken bytes lead them to
            raise _damaged(path, error) from error


def _known(name: str) -> bool:
    """Whether this Pillow was built with a format; it refuses to be asked for others."""
    Image.init()
    return name in Image.OPEN


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow would clip 16 bits to 8 and give a white picture.
        return image.point(lambda value: value * (255.0 / _DEEP_GREY[image.mode]), "F").convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _too_large(path: Path, size: str) -> FoveateError:
    return FoveateError(f"{path} is too large: {size}, and the limit is {LIMIT:,}; make it smaller first")


def _damaged(path: Path, error: Exception) -> FoveateError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    reason = reason.splitlines()[0].rstrip(".")
    return FoveateError(f"{path} cannot be read ({reason}); get the file again or save it anew")
