"""Keep a uniform grid of tokens in time and space."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import cells, grids
from foveate.plan import SELECTED


@register("stride3d")
@dataclass(frozen=True)
class Stride3d(Method):
    """Keep the middle token of each cell of the largest grid in time and space within the budget.

    The grid has about the clip's proportions, so frames are left out as rows and columns are. The method reads neither
    clip nor question. The number of kept tokens may be below the budget. On an image it does what `stride` does.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.randn(1, 64, 8), (4, 4, 4))
    >>> Stride3d(keep=8).plan(tokens).slot.tolist()
    [[0, 2, 8, 10, 32, 34, 40, 42]]
    """

    fixed = True
    operations = 1 + SELECTED

    def count(self, layout: Layout) -> int:
        """Return the number of cells of the grid."""
        return sum(t * h * w for t, h, w in grids(layout, self.keep, between_frames=True))

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the middle of each cell."""
        _, middle = cells(tokens.layout, grids(tokens.layout, self.keep, between_frames=True))
        return Plan(slot=middle.to(tokens.features.device, non_blocking=True).expand(tokens.features.shape[0], -1))
