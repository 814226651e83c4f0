"""Average the cells of a coarser grid.  M3, Cai et al. 2024, arXiv 2405.17430, without its training."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Effort, Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import averages, averaging_operations, grids


@register("pool2d")
@dataclass(frozen=True)
class Pool2d(Method):
    """Average the tokens (2-D pooling) to the largest grid of about the same aspect ratio that fits the budget.

    The number of kept tokens may be below the budget: 272 for 288 of 24 x 24.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.arange(8.0).view(1, 8, 1), (2, 4))
    >>> Pool2d(keep=2).plan(tokens).apply(tokens.features).flatten().tolist()
    [2.5, 4.5]
    """

    paper = "arXiv 2405.17430"
    unchanged_if_all = True
    fixed = True

    def count(self, layout: Layout) -> int:
        """Return the number of cells of the grid."""
        return sum(t * h * w for t, h, w in grids(layout, self.keep))

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate sums of all features."""
        return Effort(2 * tokens * width, averaging_operations(tokens, self.keep.count(tokens)))

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cell of each token, four times."""
        return 33 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to average each cell of the grid, at the middle place of the cell."""
        return averages(tokens, grids(tokens.layout, self.keep))
