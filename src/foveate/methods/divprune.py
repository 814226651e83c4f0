"""Keep tokens that are far from each other.  DivPrune, Alvar et al. 2025, arXiv 2503.02175."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Int64

from foveate.methods import Effort, Method, Plan, Positions, VisualTokens, one_row, register
from foveate.methods.arithmetic.products import Pairs, cosines, pairs_bytes
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """Keep a max-min diverse subset: each pick is the token farthest from all earlier picks.

    The distance is 1 - cosine, in float32. The first pick is the token whose nearest other token is farthest away. Of
    equally far tokens the first is taken. The method reads only the features, not the question. It keeps exactly the
    budget.

    Differences from the authors' code: a token's nearest other token is never the token itself. The authors take the
    second smallest distance, which, because of rounding, can be the token's distance to itself. A fraction is rounded
    half up; theirs is rounded half to even.

    Cost: the cosines of all pairs, then three small operations per kept token, for all images at once. Above 4,096
    tokens no N x N matrix is kept, and the cosines to a pick are computed again.

    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2], [-1.0, 0.0]]])
    >>> DivPrune(keep=3).plan(VisualTokens.of(features, (1, 5))).slot.tolist()
    [[0, 2, 4]]
    """

    positions: Positions = "pack"

    paper = "arXiv 2503.02175"
    unchanged_if_all = True

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cosines of all pairs."""
        return pairs_bytes(tokens, width) + 30 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to keep the farthest-point picks, in raster order."""
        pairs = cosines(tokens.features)
        kept = self.count(tokens.layout)
        if pairs.matrix is not None:
            picks = _farthest(pairs.matrix.neg_().add_(1), kept)
        else:
            picks = _farthest_by_rows(pairs, kept)
        return Plan(slot=picks.sort(dim=1).values)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: the matrix of cosines, then three operations over all tokens per kept token."""
        kept = self.count(one_row(tokens))
        return Effort(2 * tokens**2 * width + 3 * kept * tokens, 3 * kept + 13 + SELECTED)


def farthest_points(away: Float32[Tensor, "B N N"], kept: int) -> Int64[Tensor, "B M"]:
    """Pick tokens by greedy max-min distance, in the order of picking: `(B, kept)` int64.

    Args:
        away: `(B, N, N)` float32, distances; the diagonal is not read.
        kept: the number of picks.

    >>> away = torch.tensor([[0.0, 1.0, 7.0], [1.0, 0.0, 6.0], [7.0, 6.0, 0.0]])
    >>> farthest_points(away[None], 2).tolist()
    [[2, 0]]
    """
    return _farthest(away.clone(), kept)


def _farthest(away: Float32[Tensor, "B N N"], kept: int) -> Int64[Tensor, "B M"]:
    """Pick from a matrix of distances, and overwrite its diagonal."""
    rows = torch.arange(away.shape[0], device=away.device)
    itself = away.diagonal(dim1=1, dim2=2)
    itself.fill_(torch.inf)
    pick = away.amin(dim=2).argmax(dim=1)
    # The distance of a pick to itself is -inf, so no token is picked twice.
    itself.fill_(-torch.inf)
    picks = [pick]
    reach = away[rows, pick]
    for _ in range(kept - 1):
        pick = reach.argmax(dim=1)
        picks.append(pick)
        reach = torch.minimum(reach, away[rows, pick])
    return torch.stack(picks, dim=1)


def _farthest_by_rows(pairs: Pairs, kept: int) -> Int64[Tensor, "B M"]:
    """Pick from cosines of which only the rows of picks are computed, after one pass for the first pick."""
    like: Tensor | None = None
    for rows, columns, values in pairs.blocks():
        if like is None:
            like = values.new_full((values.shape[0], pairs.count), -torch.inf)
        if rows == columns:
            values.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        like[:, rows] = torch.maximum(like[:, rows], values.amax(dim=2))
        like[:, columns] = torch.maximum(like[:, columns], values.amax(dim=1))
    assert like is not None
    pick = (1 - like).argmax(dim=1)
    picks = [pick]
    reach = torch.full_like(like, torch.inf)
    for _ in range(kept - 1):
        reach = torch.minimum(reach, 1 - pairs.rows(pick)).scatter_(1, pick[:, None], -torch.inf)
        pick = reach.argmax(dim=1)
        picks.append(pick)
    return torch.stack(picks, dim=1)
