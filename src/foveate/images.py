"""Open image files safely, as RGB, the way a viewer shows them."""

from __future__ import annotations

import base64
import os
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import FoveateError, first_line, shown
from foveate.files import open_file, shown_path

__all__ = ["LIMIT", "decode_image", "on_white", "open_image"]

LIMIT: Final = 100_000_000
"""The largest number of pixels of an image: about 400 MB decoded."""

# A list of names, because Pillow also opens formats that start other programs (EPS) or that are documents.
_FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DOCUMENTS: Final = {
    b"%PDF": "not an image, but a PDF document",
    b"%!PS": "not an image, but a PostScript file",
    b"<svg": "not an image, but an SVG drawing",
    b"ftypheic": "a HEIC photo, which foveate does not open",
    b"ftypheix": "a HEIC photo, which foveate does not open",
    b"ftypmif1": "a HEIC photo, which foveate does not open",
    b"ftypisom": "not an image, but a video",
    b"ftypmp4": "not an image, but a video",
    b"\x93NUMPY": "not an image, but a NumPy array",
    b"II*\0": "a TIFF file of a kind that Pillow can't read, such as 64-bit numbers",
    b"MM\0*": "a TIFF file of a kind that Pillow can't read, such as big-endian unsigned 32-bit numbers",
}
"""What files that aren't opened have near their beginning, and what errors call them."""

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_TAGS: Final = (_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT)
"""Tags of TIFF: bits per number; what zero looks like; kind of number."""
_OVERSHOOT: Final = 0.05
"""By how much of the range resampling may have left it; beyond that the range is another one."""
_WHITE_IS_ZERO: Final = 0
_UNSIGNED, _SIGNED = 1, 2


def open_image(path: str | Path, limit: int | None = None) -> Image.Image:
    """Open an image: upright by its EXIF tag, transparency over white, the first frame of an animation.

    Checks the size before it decodes anything.

    Numbers of more than 8 bits become grey levels. 16-bit numbers are divided by their range, 65535. 32-bit integers,
    signed 16-bit integers and floats have no agreed range: floats from 0 to 1 are fractions of white, floats from 0 to
    128 or more and whole numbers from 0 to 255 are 8-bit levels, and all others are scaled from their smallest (black)
    to their largest (white); an image of one such number is mid-grey. Floats may leave these ranges by 5 %, as
    resampling makes them, and are clipped.

    Args:
        path: a PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF file.
        limit: the most pixels that it may have; None is `LIMIT`.

    Returns:
        An image of mode "RGB", fully read.

    Raises:
        FoveateError: the file is missing, is not an image, is damaged, has NaN or infinite pixels, or has more than
            `limit` pixels.

    >>> open_image("holiday.png")
    Traceback (most recent call last):
    foveate.files.paths.MissingFile: there is no image holiday.png; check the path
    """
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FoveateError(f"an image file is named by its path, not by {shown(path)}")
    with open_file(path, "image") as file:
        return _read(file, shown_path(path), LIMIT if limit is None else limit)


def decode_image(content: bytes, name: str = "the content") -> Image.Image:
    """Decode the bytes of an image file as `open_image` does.

    Args:
        content: of a file of one of the formats of `open_image`.
        name: what errors call it.

    Raises:
        FoveateError: as `open_image` says.

    >>> decode_image(b"GIF89a")
    Traceback (most recent call last):
    foveate.errors.FoveateError: the content is not an image, whatever its name says; use a PNG, JPEG, ...
    """
    return _read(BytesIO(content), name, LIMIT)


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """Return an image as text that pages can show, and requests can bring, without another request.

    Args:
        image: of a mode that the format has.
        kind: "png", "jpeg" or "webp".
        **options: of Pillow's writer for that format.

    >>> data_url(Image.new("RGB", (8, 8)), "webp")[:23]
    'data:image/webp;base64,'
    """
    held = BytesIO()
    image.save(held, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode('ascii')}"


def _read(file: BinaryIO, name: str, limit: int) -> Image.Image:
    """Read an open image file; `name` is what errors call it."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at its own limit; LIMIT is checked below.
            warnings.simplefilter("ignore")
            opened = Image.open(file, formats=[each for each in _FORMATS if _known(each)])
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(name, f"{int(count[0]):,} pixels" if count else "too many pixels", limit) from None
    except UnidentifiedImageError:
        raise FoveateError(f"{name} is {_kind_of(file)}; use a PNG, JPEG, WebP, GIF, BMP or TIFF file") from None
    except Exception as error:
        raise _damaged(name, error) from error
    with opened:
        width, height = opened.size
        if width * height > limit:
            raise _too_large(name, f"{width:,} x {height:,} pixels", limit)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened.load()
                # An image that is turned loses its tags.
                tags = {tag: getattr(opened, "tag_v2", {}).get(tag) for tag in _TAGS}
                return _rgb(ImageOps.exif_transpose(opened), tags)
        except FoveateError as error:
            raise FoveateError(f"{name} {error}") from None
        except Exception as error:  # on broken bytes, decoders raise all kinds of errors
            raise _damaged(name, error) from error


def _known(name: str) -> bool:
    """Return whether this Pillow was built with a format; Image.open refuses names of others."""
    Image.init()
    return name in Image.OPEN


def _kind_of(file: BinaryIO) -> str:
    """Say what a file is that can't be opened as an image."""
    file.seek(0)
    head = file.read(512)
    kinds = (kind for mark, kind in _DOCUMENTS.items() if mark in head)
    return next(kinds, "not an image, whatever its name says")


def _rgb(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed(image, tags):
        return Image.fromarray(_grey_levels(image, tags)).convert("RGB")
    return on_white(image)


def on_white(image: Image.Image) -> Image.Image:
    """Return an image as "RGB", with white where it is transparent.

    >>> on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _is_signed(image: Image.Image, tags: dict[int, Any]) -> bool:
    """Return whether an image has 8-bit numbers below zero, which Pillow takes for large ones."""
    return image.mode == "L" and _first(tags, _SAMPLE_FORMAT) == _SIGNED


def _first(tags: dict[int, Any], tag: int) -> int | None:
    value = tags[tag]
    return value[0] if isinstance(value, tuple) else value


def _grey_levels(image: Image.Image, tags: dict[int, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn numbers of more than 8 bits into grey levels `(height, width)`; `open_image` says how.

    Raises:
        FoveateError: a number is NaN or infinite.
    """
    numbers = np.asarray(image)
    if image.mode == "L":
        numbers = numbers.view(np.int8)
    elif image.mode == "I" and _first(tags, _BITS) == 32 and _first(tags, _SAMPLE_FORMAT) in (None, _UNSIGNED):
        numbers = numbers.view(np.uint32)
    values = numbers.astype(np.float64)
    if not np.isfinite(values).all():
        raise FoveateError("has NaN or infinite pixels; replace them before you save the image")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and tags[_BITS] is None):
        # Pillow scales what is in a PGM file to 16 bits.
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= -_OVERSHOOT and 1 / 255 <= high <= 1 + _OVERSHOOT:
        low, high = 0.0, 1.0
    elif (image.mode == "F" and low >= -255 * _OVERSHOOT and 128 <= high <= 255 * (1 + _OVERSHOOT)) or (
        low >= 0 and high <= 255 and bool((values == np.floor(values)).all())
    ):
        low, high = 0.0, 255.0
    levels = np.full_like(values, 0.5) if low == high else (values - low) / (high - low)
    levels = levels.clip(0, 1)
    if _first(tags, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 1 - levels
    return (levels * 255 + 0.5).astype(np.uint8)


def _too_large(name: str, size: str, limit: int) -> FoveateError:
    return FoveateError(f"{name} is too large: {size}, and the limit is {limit:,}; make it smaller first")


def _damaged(name: str, error: Exception) -> FoveateError:
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return FoveateError(f"{name} cannot be read ({reason}); get the file again or save it again")
