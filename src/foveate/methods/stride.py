"""Keep a uniform 2-D grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import cells, grids
from foveate.plan import SELECTED


@register("stride")
@dataclass(frozen=True)
class Stride(Method):
    """Keep the middle token of each cell of the largest grid within the budget that keeps the aspect ratio.

    The method reads neither image nor question. The real count may be below the budget: 272 for 288 of 24 x 24.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.randn(1, 16, 8), (4, 4))
    >>> Stride(keep=4).plan(tokens).slot.tolist()
    [[0, 2, 8, 10]]
    """

    fixed = True
    operations = 1 + SELECTED

    unchanged_if_all = True

    def count(self, layout: Layout) -> int:
        """Return the number of cells of the grid."""
        return sum(t * h * w for t, h, w in grids(layout, self.keep))

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the middle of each cell."""
        _, middle = cells(tokens.layout, grids(tokens.layout, self.keep))
        return Plan(slot=middle.to(tokens.features.device, non_blocking=True).expand(tokens.features.shape[0], -1))
