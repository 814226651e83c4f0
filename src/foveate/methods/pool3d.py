"""Average the cells of a grid that is coarser in time and space."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import averages, grids
from foveate.plan import AVERAGED


@register("pool3d")
@dataclass(frozen=True)
class Pool3d(Method):
    """Average the tokens of a clip in time and space to the largest grid of about its proportions within the budget.

    A cell covers several neighbouring frames, and rows and columns of each. A baseline that every method for clips must
    beat. The number of kept tokens may be below the budget. On an image it does what `pool2d` does.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.arange(32.0).view(1, 32, 1), (2, 4, 4))
    >>> Pool3d(keep=4).plan(tokens).apply(tokens.features).flatten().tolist()
    [10.5, 12.5, 18.5, 20.5]
    """

    fixed = True
    operations = 2 + AVERAGED

    def count(self, layout: Layout) -> int:
        """Return the number of cells of the grid."""
        return sum(t * h * w for t, h, w in grids(layout, self.keep, between_frames=True))

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to average each cell of the grid, at the middle place of the cell."""
        return averages(tokens, grids(tokens.layout, self.keep, between_frames=True))
