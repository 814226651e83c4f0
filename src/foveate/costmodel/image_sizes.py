"""Check the sizes of the images of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.arguments import listed
from foveate.errors import FoveateError
from foveate.images import LIMIT


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
