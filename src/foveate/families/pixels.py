"""Resizing pixels before an encoder, in the one way that all families have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    from torch import Tensor


def resized_pixels(
    pixels: Float[Tensor, "B C H W"], size: tuple[int, int], enlarge: bool = False
) -> Float32[Tensor, "B C h w"]:
    """Average pixels down to a size.

    Args:
        pixels: of images of one size.
        size: height and width in pixels.
        enlarge: enlarge them to their own size again, which loses detail and saves no token.

    >>> import torch
    >>> resized_pixels(torch.arange(4.0).view(1, 1, 2, 2), (1, 1)).item()
    1.5
    """
    small = torch.nn.functional.interpolate(pixels.float(), size=size, mode="area")
    if not enlarge:
        return small
    return torch.nn.functional.interpolate(
        small, size=pixels.shape[-2:], mode="bicubic", align_corners=False, antialias=False
    )


def picture_of(patches: Float[Tensor, "P values"], grid: tuple[int, int], side: int) -> Float[Tensor, "1 C H W"]:
    """Put patches together that come row by row, each as rows of pixels with their channels.

    Args:
        patches: of one image, and after them any padding.
        grid: rows and columns of patches.
        side: pixels along one side of a patch.
    """
    rows, columns = grid
    whole = patches[: rows * columns].view(1, rows, columns, side, side, -1)
    return whole.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patches_of(picture: Float[Tensor, "1 C H W"], side: int) -> Float[Tensor, "P values"]:
    """Cut a picture into patches, the inverse of `picture_of`.

    >>> import torch
    >>> picture = torch.rand(1, 3, 4, 6)
    >>> torch.equal(picture_of(patches_of(picture, 2), (2, 3), 2), picture)
    True
    """
    cut = picture[0].unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return cut.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
