"""PruMerge that also keeps evenly spaced tokens.  PruMerge+, Shang et al. 2024, arXiv 2403.15388."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float32, Int64

from foveate.methods import register
from foveate.methods.prumerge import PruMerge, most_outliers, outliers, ranks

if TYPE_CHECKING:
    from torch import Tensor


@register("prumerge-plus")
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """Keep the outliers of [CLS] attention and about three times as many evenly spaced tokens, with their neighbours.

    With k outliers, the evenly spaced tokens are every s-th in raster order, s = (N // k) // 3. Neighbours and the
    extra token are as in `prumerge`.

    Budget: `auto` looks at the image; the paper reports a quarter of the tokens on average. With a `keep`, not
    counting the extra token, half of the tokens are evenly spaced; the other half are the most attended of the
    others. `ratio` is the branch of the authors' code for training: k is that share of the tokens, and the evenly
    spaced tokens are every (1 / `ratio`)-th, starting in the middle of the first interval.

    Against the authors' code, besides the differences of `prumerge`: with a fixed ratio, theirs takes a token twice if
    it is both attended and evenly spaced, and leaves as many dropped tokens out of the extra one; here each token is
    taken once and none is left out. As in theirs, `auto` keeps all tokens but the last if a sixth or more of them are
    outliers.

    >>> from foveate.tokens import VisualTokens
    >>> given = {"encoder_attention": torch.rand(2, 576) ** 20, "encoder_keys": torch.randn(2, 576, 8)}
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 4), (24, 24), **given)
    >>> PruMergePlus(keep=145).plan(tokens).slot.shape, PruMergePlus().plan(tokens).slot.shape[1] <= 576
    (torch.Size([2, 145]), True)
    """

    @property
    def ragged(self) -> bool:
        """Whether counts differ between images: yes unless a keep is given, as the overlap of both kinds differs."""
        return self.keep.auto

    @property
    def _choosing(self) -> int:
        if not self.ragged:
            return 12
        return 64 if self.ratio is None else 17

    def _between(self, count: int) -> tuple[int, int]:
        """Return the fewest and the most kept tokens: both kinds may be the same tokens, or all different ones."""
        if self.ratio is not None:
            numbers = [(super()._between(count)[0], int(_even(torch.arange(count), count, self.ratio).sum()))]
        else:
            numbers = [
                (kept, -(-(count - 1) // max(1, count // kept // 3))) for kept in range(1, most_outliers(count) + 1)
            ]
        return min(max(each) for each in numbers), min(count, max(sum(each) for each in numbers))

    def _chosen(self, attention: Float32[Tensor, "B N"], wanted: int | None) -> Bool[Tensor, "B N"]:
        """Mark the most attended and the evenly spaced tokens."""
        count = attention.shape[1]
        place = torch.arange(count, device=attention.device)
        if wanted is not None:
            # Evenly spaced tokens fill half of the budget, rounded down; the most attended of the others fill the rest.
            number = wanted // 2
            even = torch.zeros(count, dtype=torch.bool, device=place.device)
            even[(2 * torch.arange(number, device=place.device) + 1) * count // max(1, 2 * number)] = True
            return ranks(attention.masked_fill(even, torch.inf)) < wanted
        attended = super()._chosen(attention, None)
        if self.ratio is not None:
            return attended | _even(place, count, self.ratio)
        apart = (count // outliers(attention) // 3).clamp(min=1)[:, None]
        return attended | ((place % apart == 0) & (place < count - 1))


def _even(place: Int64[Tensor, " N"], count: int, ratio: float) -> Bool[Tensor, " N"]:
    """Mark every (1 / ratio)-th place, starting in the middle of the first interval."""
    apart = int(1 / ratio)
    return (place % apart == apart // 2) & (place < count - 1)
