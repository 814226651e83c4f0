"""How a step at `@pixels` resizes an image, and which tokens of the full and of the resized image correspond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.methods import PixelMethod
from foveate.tokens import Layout

if TYPE_CHECKING:
    from torch import Tensor


def resize_mode(family: Family, pixels: PixelMethod | None) -> str:
    """Return how a step at `@pixels` resizes images of this family; "" without such a step.

    "auto" is the family's first way.

    Raises:
        FoveateError: the family has no such way.
    """
    if pixels is None:
        return ""
    if pixels.mode == "auto":
        return family.resize_modes[0]
    if pixels.mode not in family.resize_modes:
        ways = " or ".join(family.resize_modes)
        raise FoveateError(
            f"{family.title} cannot resize {pixels.mode!r}; use {ways}, or auto for {family.resize_modes[0]}"
        )
    return pixels.mode


def dense_slots(seen: Layout, layout: Layout) -> Int64[Tensor, " n"]:
    """Map each token of the resized image to a token of the full one: `(n,)` int64, unique and ascending.

    A token takes the place of the full-size token under its centre.
    """
    if seen == layout:
        return torch.arange(layout.content)
    places: list[Tensor] = []
    offset = 0
    for small, full in zip(seen.segments, layout.segments, strict=True):
        axes = [
            ((torch.arange(n, dtype=torch.float64) + 0.5) * m / n).floor().long()
            for n, m in ((small.t, full.t), (small.h, full.h), (small.w, full.w))
        ]
        t, h, w = torch.meshgrid(*axes, indexing="ij")
        places.append(((t * full.h + h) * full.w + w).flatten() + offset)
        offset += full.t * full.h * full.w
    return torch.cat(places)


def nearest_below(seen: Layout, layout: Layout) -> Int64[Tensor, " N"]:
    """Map each token of the full image to the last token of the resized one at or before it: `(N,)` int64."""
    marks = torch.zeros(layout.content, dtype=torch.int64)
    marks[dense_slots(seen, layout)] = 1
    return (marks.cumsum(0) - 1).clamp(min=0)
