"""Shrink the image before the encoder: the baseline that many methods lose to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foveate.methods import Layout, PixelMethod, Positions, ResizeMode, register
from foveate.methods.arithmetic.grids import fit


@register("resize")
@dataclass(frozen=True)
class Resize(PixelMethod):
    """Average the pixels down until the image makes at most as many tokens as the budget.

    How, is the family's affair: "exact" where the encoder takes any size, "interpolate" where its position embeddings
    can be interpolated, "enlarge" (shrink, then back to full size: less detail, the same tokens) where neither; "auto"
    is the best it has. Positions are those of the smaller image, unless they are kept. The tiles of a tiled image
    shrink together; with `per=tile` the budget is that of each tile.

    >>> from foveate.tokens import Segment
    >>> Resize(keep=0.25).shrink(Layout((Segment(1, 24, 24),)))
    (12, 12)
    """

    positions: Positions = "pack"
    mode: ResizeMode = "auto"

    def shrink(self, layout: Layout) -> tuple[int, int]:
        """The largest aspect-true grid that fits into the budget; of several grids the first, the others follow it."""
        first = layout.segments[0]
        if len(layout.segments) == 1:
            budget = self.keep.count(first.count)
        elif self.keep.share is not None:
            # Rounded down, so that all grids together stay within their share too.
            budget = math.floor(self.keep.share * first.count)
        elif self.per == "tile":
            budget = min(self.keep.count(layout.content), first.count)
        else:
            budget = self.keep.count(layout.content) * first.count // layout.content
        return fit(first.h, first.w, max(1, budget // first.t))

    def count(self, layout: Layout) -> int:
        """Tokens of the smaller image; of one that is enlarged again, all."""
        return layout.content if self.mode == "enlarge" else super().count(layout)
