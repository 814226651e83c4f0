"""A budget for each tile of a tiled image, by what [CLS] saw early.  HiRED, Arif et al. 2024, arXiv 2408.10945."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.methods import EncoderAttention, KeepError, Layout, Method, Plan, Positions, Signal, VisualTokens, register
from foveate.methods.arithmetic.parts import filled_up, top_of_each


@register("hired")
@dataclass(frozen=True)
class HiRED(Method):
    """Top-k by [CLS] attention inside the whole image and inside each of its tiles.

    The whole image, which is the first grid, gets `alpha` of the budget. The tiles share the rest by votes: the tokens
    of the whole image that [CLS] looks at most in an `early` layer, (1 - alpha) of them, vote for the tile in which
    they lie. Attention of `layer` then chooses inside each. An image of a single grid has no tiles: this is `cls`.

    Tiles are those that the layout tells. Where each is a grid of its own, nothing tells how they lie; then, as in the
    authors' code, equal runs of the whole image's tokens in raster order vote for one tile each.

    Budget: `keep` is all tokens, of the whole image and of the tiles. Budgets are rounded down; what is left over, and
    what a tile can't take, goes to the most attended of all other tokens. With `remainder=drop` it is lost, as in the
    authors' code, and images differ a little in how much they keep.

    Against the authors' code: theirs lets runs vote also where tiles lie side by side, so a tile on the right gets the
    budget of a stripe; here a token votes for the tile that it is in. Its default `alpha` is 1.0, which leaves to the
    tiles what the whole image can't take; 0.5 gives each a half. Acts after the projector, which changes nothing,
    because nothing is merged.

    >>> from foveate.tokens import Segment
    >>> layout = Layout((Segment(1, 4, 4), Segment(1, 8, 8, rows=(4, 4), columns=(4, 4))))
    >>> tokens = VisualTokens.of(torch.randn(2, 80, 8), layout, encoder_attention=torch.rand(2, 80))
    >>> plan = HiRED(keep=16).plan(tokens)
    >>> plan.slot.shape, ((plan.slot < 16).sum(dim=1) >= 8).tolist()
    (torch.Size([2, 16]), [True, True])
    """

    positions: Positions = "pack"
    alpha: float = 0.5
    layer: int = -2
    early: int = 0
    remainder: Literal["fill", "drop"] = "fill"

    paper = "arXiv 2408.10945"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise KeepError(f"alpha {self.alpha} is no share; write a number from 0 to 1")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention of a late and of an early encoder layer."""
        return EncoderAttention(layer=self.layer), EncoderAttention(layer=self.early)

    @property
    def ragged(self) -> bool:
        """Only if what is left over is dropped."""
        return self.remainder == "drop"

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """`keep`; if what is left over is dropped, the whole image's share is sure."""
        most = self.count(layout)
        return (min(most, self._whole(layout)) if self.ragged and len(layout.segments) > 1 else most), most

    def plan(self, tokens: VisualTokens) -> Plan:
        """Budgets, then the top of each grid and tile."""
        late, early = (tokens.signals[need].float() for need in self.needs)
        layout, kept = tokens.layout, self.count(tokens.layout)
        if len(layout.segments) == 1:
            return Plan(slot=filled_up(torch.zeros_like(late, dtype=torch.bool), late, kept))
        part, vote = (each.to(late.device) for each in _parts(layout))
        count, whole = layout.segments[0].count, self._whole(layout)
        voters = early[:, :count].argsort(dim=1, descending=True, stable=True)[:, : int(count * (1 - self.alpha))]
        votes = torch.zeros(late.shape[0], len(layout.tiles), dtype=torch.int64, device=late.device)
        votes = votes.scatter_add(1, vote[voters], torch.ones_like(voters))
        share = votes / votes.sum(dim=1, keepdim=True).clamp(min=1)
        quota = (share * (kept - whole)).long()
        quota[:, 0] = whole
        chosen = top_of_each(late, part, quota)
        return Plan.keeping(chosen) if self.ragged else Plan(slot=filled_up(chosen, late, kept))

    def _whole(self, layout: Layout) -> int:
        """Return the tokens of the full image: at least one where no tile fills up the rest."""
        return min(max(int(self.count(layout) * self.alpha), int(self.ragged)), layout.segments[0].count)


def _parts(layout: Layout) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " count"]]:
    """The part that each token is in, 0 is the whole image; and which part each token of the whole image votes for."""
    part = torch.empty(layout.content, dtype=torch.int64)
    for number, (_, index) in enumerate(layout.tiles):
        part[index] = number
    base, *rest = layout.segments
    if len(rest) > 1:
        return part, torch.arange(base.count) * int(part[-1]) // base.count + 1
    # A token of the whole image lies over the token of the grid that is under its middle.
    (grid,) = rest
    down, right = ((2 * torch.arange(n) + 1) * m // (2 * n) for n, m in ((base.h, grid.h), (base.w, grid.w)))
    return part, part[base.count + down[:, None] * grid.w + right].flatten().repeat(base.t)
