"""Average the cells of a coarser grid.  M3, Cai et al. 2024, arXiv 2405.17430, without its training."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import cells, grids
from foveate.plan import AVERAGED


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
    operations = 2 + AVERAGED

    def count(self, layout: Layout) -> int:
        """Return the number of cells of the grid."""
        return sum(t * h * w for t, h, w in grids(layout, self.keep))

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cell of each token, four times."""
        return 33 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to average each cell of the grid, at the middle place of the cell."""
        group, middle = cells(tokens.layout, grids(tokens.layout, self.keep))
        images, device = tokens.features.shape[0], tokens.features.device
        return Plan(
            slot=middle.to(device, non_blocking=True).expand(images, -1),
            group=group.to(device, non_blocking=True).expand(images, -1),
        )
