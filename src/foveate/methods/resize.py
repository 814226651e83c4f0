"""Shrink the image before the encoder: a baseline that outperforms many methods."""

from __future__ import annotations

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
    smaller image, unless they are kept. The tiles of a tiled image shrink together. A share is of each tile, and
    so is a number with `per=tile`; with `per=frame` it is of each frame of a clip.

    >>> from foveate.tokens import Segment
    >>> Resize(keep=0.25).shrink(Layout((Segment(1, 24, 24),)))
    (12, 12)
    """

    positions: Positions = "pack"
    mode: ResizeMode = "auto"

    def shrink(self, layout: Layout) -> tuple[int, int]:
        """Return the largest grid within the budget that keeps the aspect ratio; of several grids, the first one's."""
        first = layout.segments[0]
        if self.keep.share is not None:
            # Grids that are equal shrink equally, in whatever image they are: encoders take tiles of one size.
            budget = self.keep.count(first.count)
        elif self.per == "frame" and first.t > 1:
            budget = min(self.keep.count(layout.content), first.h * first.w) * first.t
        elif self.per == "tile":
            budget = min(self.keep.count(layout.content), first.count)
        else:
            # Rounded down, so that all grids together stay within the budget.
            budget = self.keep.count(layout.content) * first.count // layout.content
        return fit(first.h, first.w, max(1, budget // first.t))

    def count(self, layout: Layout) -> int:
        """Return the number of tokens of the smaller image; all tokens if it is enlarged again."""
        return layout.content if self.mode == "enlarge" else super().count(layout)
