"""Open image files safely, as RGB, the way a viewer shows them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import FoveateError

__all__ = ["LIMIT", "open_image"]

LIMIT: Final = 100_000_000
"""The largest number of pixels of an image: about 400 MB decoded."""

# A list of names, because Pillow also opens formats that start other programs (EPS) or that are documents.
_FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DEEP_GREY: Final = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I;16N": 65535.0, "I": 65535.0}


def open_image(path: str | Path) -> Image.Image:
    """Open an image: upright by its EXIF tag, transparency over white, the first frame of an animation.

    Checks the size before it decodes anything.

    Args:
        path: a PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF file.

    Returns:
        An image of mode "RGB", fully read.

    Raises:
        FoveateError: the file is missing, is not an image, is damaged, or has more than `LIMIT` pixels.

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
            # Pillow warns at its own limit; LIMIT is checked below.
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
        except Exception as error:  # on broken bytes, decoders raise all kinds of errors
            raise _damaged(path, error) from error


def _known(name: str) -> bool:
    """Return whether this Pillow was built with a format; Image.open refuses names of others."""
    Image.init()
    return name in Image.OPEN


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow would clip 16-bit values at 255, so the image would be white.
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
    return FoveateError(f"{path} cannot be read ({reason}); get the file again or save it again")
