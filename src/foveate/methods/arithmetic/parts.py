"""Keep tokens by a quota for each part of an image, such as windows or tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64

from foveate.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def top_of_each(
    score: Float[Tensor, "B N"], part: Int64[Tensor, " N"], quota: Int64[Tensor, "B P"]
) -> Bool[Tensor, "B N"]:
    """Keep the tokens with the highest scores of each part, up to its quota: `(B, N)` bool; the first of equal ones.

    Args:
        score: `(B, N)`.
        part: `(N,)` int64, the number of the part that each token is in.
        quota: `(B, P)` int64, per part; a quota larger than its part keeps the whole part.

    >>> score, part = torch.tensor([[0.1, 0.4, 0.3, 0.2]]), torch.tensor([0, 0, 1, 1])
    >>> top_of_each(score, part, torch.tensor([[1, 2]])).tolist()
    [[False, True, True, True]]
    """
    falling = score.argsort(dim=1, descending=True, stable=True)
    order = falling.gather(1, part[falling].argsort(dim=1, stable=True))
    # Tokens are sorted by part, then by score, so every image has the same parts at the same places.
    sizes = torch.zeros_like(quota[0]).scatter_add(0, part, torch.ones_like(part))
    sorted_part = part.sort(stable=True).values
    rank = torch.arange(part.shape[0], device=part.device) - (sizes.cumsum(0) - sizes)[sorted_part]
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, rank < quota[:, sorted_part])


def filled_up(chosen: Bool[Tensor, "B N"], score: Float[Tensor, "B N"], kept: int) -> Int64[Tensor, "B M"]:
    """Return the slots of `kept` tokens, ascending: the chosen ones, then the highest scores of the others.

    >>> filled_up(torch.tensor([[False, True, False]]), torch.tensor([[0.1, 0.2, 0.3]]), 2).tolist()
    [[1, 2]]
    """
    return Plan.highest(score.masked_fill(chosen, torch.inf), kept).slot
