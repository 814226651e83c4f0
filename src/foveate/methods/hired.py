"""Set a budget for each tile by early [CLS] attention.  HiRED, Arif et al. 2024, arXiv 2408.10945."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int64

from foveate.methods import EncoderAttention, KeepError, Layout, Method, Plan, Positions, Signal, VisualTokens, register
from foveate.methods.arithmetic.parts import filled_up, top_of_each
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("hired")
@dataclass(frozen=True)
class HiRED(Method):
    """Keep the tokens with the highest [CLS] attention in the whole image and in each of its tiles.

    The whole image, a grid of its own, gets the share `alpha` of the budget. The tiles share the rest by
    votes. The voters are the share (1 - alpha) of the whole image's tokens with the highest [CLS] attention in the
    layer `early`; each votes for the tile that it lies in. The attention of `layer` then selects tokens inside each
    part. An image of a single grid has no tiles; there the method is the same as `cls`.

    The layout gives the tiles and how they lie. Where it doesn't say how, equal runs of the whole image's tokens in
    raster order vote for one tile each, as in the authors' code.

    Budget: `keep` counts all tokens, of the whole image and of the tiles. The budget of each part is rounded down. The
    remainder, and what a tile can't use, goes to the most attended of all other tokens. With `remainder=drop` it is
    lost, as in the authors' code, and the number of kept tokens differs a little between images.

    Differences from the authors' code: there, runs vote even if tiles lie side by side, so a tile on the right gets
    the budget of a stripe; here a token votes for the tile that it is in. Their default `alpha` is 1.0, which leaves
    the tiles only what the whole image can't use; 0.5 gives half to each. The method acts after the projector, which
    changes nothing, because nothing is merged.

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
    unchanged_if_all = True
    operations = 4 + SELECTED

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise KeepError(f"alpha {self.alpha} is no share; write a number from 0 to 1")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of a late and an early encoder layer."""
        return EncoderAttention(layer=self.layer), EncoderAttention(layer=self.early)

    @property
    def ragged(self) -> bool:
        """Return whether images may differ in their number of tokens: only if the remainder is dropped."""
        return self.remainder == "drop"

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the bounds: `keep` twice, or from the whole image's share to `keep` if the remainder is dropped."""
        most = self.count(layout)
        return (min(most, self._whole(layout)) if self.ragged and len(layout.segments) > 1 else most), most

    def plan(self, tokens: VisualTokens) -> Plan:
        """Set the budgets, then keep the most attended tokens of each grid and tile."""
        late, early = (tokens.signals[need].float() for need in self.needs)
        layout, kept = tokens.layout, self.count(tokens.layout)
        if len(layout.segments) == 1:
            return Plan.highest(late, kept)
        part, vote = (each.to(late.device, non_blocking=True) for each in _parts(layout))
        whole = self._whole(layout)
        number, index = _whole_image(layout)
        attended = early[:, index.to(early.device, non_blocking=True)].argsort(dim=1, descending=True, stable=True)
        voters = attended[:, : int(len(index) * (1 - self.alpha))]
        votes = torch.zeros(late.shape[0], len(layout.tiles), dtype=torch.int64, device=late.device)
        votes = votes.scatter_add(1, vote[voters], torch.ones_like(voters))
        share = votes / votes.sum(dim=1, keepdim=True).clamp(min=1)
        quota = (share * (kept - whole)).long()
        quota[:, number] = whole
        chosen = top_of_each(late, part, quota)
        return Plan.keeping(chosen) if self.ragged else Plan(slot=filled_up(chosen, late, kept))

    def _whole(self, layout: Layout) -> int:
        """Return the budget of the whole image: at least one token if the remainder is dropped."""
        return min(max(int(self.count(layout) * self.alpha), int(self.ragged)), len(_whole_image(layout)[1]))


def _parts(layout: Layout) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " count"]]:
    """Return the number of the tile of each token, and of the tile that each token of the whole image votes for."""
    part = torch.empty(layout.content, dtype=torch.int64)
    for number, (_, index) in enumerate(layout.tiles):
        part[index] = number
    base, rest = layout.segments[layout.whole], layout.segments[: layout.whole] + layout.segments[layout.whole + 1 :]
    down, right = (2 * torch.arange(n) + 1 for n in (base.h, base.w))
    own, _ = _whole_image(layout)
    if len(rest) == 1:
        # A token of the whole image votes for the tile of the grid token under its middle.
        (grid,) = rest
        begin = 0 if layout.whole else base.count
        rows, columns = (middle * m // (2 * n) for middle, m, n in ((down, grid.h, base.h), (right, grid.w, base.w)))
        return part, part[begin + rows[:, None] * grid.w + columns].flatten().repeat(base.t)
    if all(tile.part for tile in rest):
        *_, high, wide = rest[0].part
        rows, columns = (middle * m // (2 * n) for middle, m, n in ((down, high, base.h), (right, wide, base.w)))
        tile = (rows[:, None] * wide + columns).flatten().repeat(base.t)
    else:
        tile = torch.arange(base.count) * len(rest) // base.count
    return part, tile + (tile >= own)


def _whole_image(layout: Layout) -> tuple[int, Int64[Tensor, " count"]]:
    """Return the whole image's number among the tiles, and its content tokens, `(count,)` int64."""
    begin = sum(segment.count for segment in layout.segments[: layout.whole])
    return next((number, index) for number, (_, index) in enumerate(layout.tiles) if int(index[0]) == begin)
