"""PruMerge, and an even grid of tokens beside what stands out.  PruMerge+, Shang et al. 2024, arXiv 2403.15388."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from foveate.methods import register
from foveate.methods.prumerge import PruMerge, most_outliers, outliers, ranks


@register("prumerge-plus")
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """What stands out by [CLS] attention and about three times as many evenly spaced tokens, each with its neighbours.

    The even tokens are every s-th in raster order, s = (N // k) // 3 where k stand out. The rest is as in `prumerge`.

    Budget: `auto` looks at the image; the paper tells of a quarter of it on average. Of a `keep`, the extra token
    aside, half is evenly spaced and the other half the most attended of the others. `ratio` is the authors' branch for
    training: k is that share of the tokens, and the even tokens are every (1 / `ratio`)-th, from the middle of the
    first stretch on.

    Against the authors' code, besides what `prumerge` says: with a fixed ratio theirs takes a token twice that is both
    attended and evenly spaced, and loses as many dropped tokens from the extra one; here a token is taken once and none
    is lost. Like theirs, `auto` keeps all but the last token where a sixth or more of them stands out.

    >>> from foveate.tokens import VisualTokens
    >>> given = {"encoder_attention": torch.rand(2, 576) ** 20, "encoder_keys": torch.randn(2, 576, 8)}
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 4), (24, 24), **given)
    >>> PruMergePlus(keep=145).plan(tokens).slot.shape, PruMergePlus().plan(tokens).slot.shape[1] <= 576
    (torch.Size([2, 145]), True)
    """

    @property
    def ragged(self) -> bool:
        """Unless a keep is given: how many tokens are both attended and evenly spaced depends on the image."""
        return self.keep.auto

    def _between(self, count: int) -> tuple[int, int]:
        """Both kinds may be the same tokens, or all different ones."""
        if self.ratio is not None:
            numbers = [(super()._between(count)[0], int(_even(torch.arange(count), count, self.ratio).sum()))]
        else:
            numbers = [
                (kept, -(-(count - 1) // max(1, count // kept // 3))) for kept in range(1, most_outliers(count) + 1)
            ]
        return min(max(each) for each in numbers), min(count, max(sum(each) for each in numbers))

    def _chosen(self, attention: Float32[Tensor, "B N"], wanted: int | None) -> Bool[Tensor, "B N"]:
        """What stands out and what is evenly spaced."""
        count = attention.shape[1]
        place = torch.arange(count, device=attention.device)
        if wanted is not None:
            # As many evenly spaced as fit into the first half, then the most attended of the others.
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
    """Every (1 / ratio)-th place, from the middle of the first stretch on."""
    apart = int(1 / ratio)
    return (place % apart == apart // 2) & (place < count - 1)
