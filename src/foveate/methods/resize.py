"""Shrink the image before the encoder: the baseline that many methods lose to."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods.base import PixelMethod, Positions, ResizeMode
from foveate.methods.grids import fit
from foveate.spec import register
from foveate.tokens import Layout


@register("resize")
@dataclass(frozen=True)
class Resize(PixelMethod):
    """Average the pixels down until the image makes at most as many tokens as the budget.

    How, is the family's affair: "exact" where the encoder takes any size, "interpolate" where its position embeddings
    can be interpolated, "enlarge" (shrink, then back to full size: less detail, the same tokens) where neither; "auto"
    is the best it has. Positions are those of the smaller image, unless they are kept.

    >>> from foveate.tokens import Segment
    >>> Resize(keep=0.25).shrink(Layout((Segment(1, 24, 24),)))
    (12, 12)
    """

    positions: Positions = "pack"
    mode: ResizeMode = "auto"

    def shrink(self, layout: Layout) -> tuple[int, int]:
        """The largest aspect-true grid that fits into the budget."""
        segment = layout.segments[0]
        return fit(segment.h, segment.w, max(1, self.keep.count(segment.count) // segment.t))

    def count(self, layout: Layout) -> int:
        """Tokens of the smaller image; of one that is enlarged again, all."""
        return layout.content if self.mode == "enlarge" else super().count(layout)
