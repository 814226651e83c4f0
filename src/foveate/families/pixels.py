"""Resizing pixels before an encoder, in the one way that all families have."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import interpolate


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
    small = interpolate(pixels.float(), size=size, mode="area")
    if not enlarge:
        return small
    return interpolate(small, size=pixels.shape[-2:], mode="bicubic", align_corners=False, antialias=False)
