"""Shrink the image before the encoder: a baseline that outperforms many methods."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foveate.methods import Layout, PixelMethod, Positions, ResizeMode, register
from foveate.methods.arithmetic.grids import fit


@register("resize")
@dataclass(frozen=True)
class Resize(PixelMethod):
    """Shrink the image by averaging pixels until it has at most as many tokens as the budget.

    The family determines how. "exact" is for encoders that take any size, "interpolate" for those whose position
    embeddings can be interpolated, "enlarge" for all others: it shrinks the image, then enlarges it to full size, which
    leaves less detail in the same number of tokens. "auto" is the best mode of the family. Positions are those of the
    smaller image, unless they are kept. The tiles of a tiled image shrink together; with `per=tile` the budget is that
    of each tile.

    >>> from foveate.tokens import Segment
    >>> Resize(keep=0.25).shrink(Layout((Segment(1, 24, 24),)))
    (12, 12)
    """

    positions: Positions = "pack"
    mode: ResizeMode = "auto"

    def shrink(self, layout: Layout) -> tuple[int, int]:
        """Return the largest grid within the budget that keeps the aspect ratio; of several grids, the first one's."""
        first = layout.segments[0]
        budget = self.keep.count(layout.content)
        if self.keep.share is not None:
            # Equal grids get equal budgets, in whatever image they are, unless rounding up would exceed the image's.
            grid = fit(first.h, first.w, max(1, self.keep.count(first.count) // first.t))
            if self.per == "tile" or first.t * grid[0] * grid[1] * layout.content <= budget * first.count:
                return grid
            budget = math.floor(self.keep.share * first.count)
        elif self.per == "tile":
            budget = min(budget, first.count)
        else:
            budget = budget * first.count // layout.content
        return fit(first.h, first.w, max(1, budget // first.t))

    def count(self, layout: Layout) -> int:
        """Return the number of tokens of the smaller image; all tokens if it is enlarged again."""
        return layout.content if self.mode == "enlarge" else super().count(layout)
