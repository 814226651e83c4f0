"""Check the sizes of the images and clips of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.arguments import listed
from foveate.errors import FoveateError, shown
from foveate.images import LIMIT
from foveate.numbers import Between, check_whole

_MOST_FRAMES = 10_000
"""More than any processor chooses of a clip."""


def read_sizes(images: Sequence[object]) -> list[tuple[int, int]]:
    """Return sizes of images, (width, height) in pixels, as PIL has them.

    >>> read_sizes([[640, 480]])
    [(640, 480)]

    Raises:
        FoveateError: one of them is no pair of numbers, or no image can have that size.
    """
    sizes: list[tuple[int, int]] = []
    for size in listed("images", images, "a list of sizes (width, height) in pixels"):
        if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
            raise FoveateError(f"{size!r} is no size of a picture; write (width, height) in pixels")
        width, height = size
        check_size(width, height)
        sizes.append((width, height))
    return sizes


def read_clip_sizes(clips: Sequence[object]) -> list[tuple[int, int, int]]:
    """Return sizes of clips, (frames, width, height).

    >>> read_clip_sizes([[16, 640, 360]])
    [(16, 640, 360)]

    Raises:
        FoveateError: one of them is something else.
    """
    sizes: list[tuple[int, int, int]] = []
    for size in listed("clips", clips, "a list of sizes (frames, width, height)"):
        if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 3:
            raise FoveateError(f"{shown(size)} is no size of a clip; write (frames, width, height)")
        frames, width, height = size
        check_size(width, height)
        sizes.append((check_whole("frames of a clip", frames, Between(1, _MOST_FRAMES)), width, height))
    return sizes


def check_size(width: int, height: int) -> None:
    """Check that an image of this size in pixels can exist, and that foveate would open it.

    Raises:
        FoveateError: a side is no whole number of 1 or more, or there are too many pixels.
    """
    for side in (width, height):
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise FoveateError(f"a picture of {width} x {height} pixels does not exist; both sides are 1 or more")
    if width * height > LIMIT:
        raise FoveateError(f"a picture of {width} x {height} has {width * height:,} pixels, and the limit is {LIMIT:,}")
