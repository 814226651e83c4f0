"""How many tokens of an image arrive at each step, computed from its layout before any encoder runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64

from foveate.errors import KeepError
from foveate.layout import one_row
from foveate.method import Per
from foveate.methods import Method
from foveate.methods.tiles import grids_of, keeps_whole_tile, known_tiles, plan_of, unit_of
from foveate.plan import Plan
from foveate.tokens import Layout, Origin, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExpectedTokens:
    """The tokens of an image at the input of a step, as far as the layout alone tells.

    Attributes:
        layout: of all of them; one row after the first step.
        tiles: the layout of each tile, or of each frame of a clip; None if an earlier step left open how many tokens of
            each remain.
        certain: False if the content decided how many tokens an earlier step kept.
        unit: what `tiles` are: "tile" or "frame".
    """

    layout: Layout
    tiles: tuple[Layout, ...] | None
    certain: bool = True
    unit: Per = "tile"

    @classmethod
    def of(cls, layout: Layout) -> ExpectedTokens:
        """Return all tokens of an image of this layout."""
        return cls(layout, tuple(Layout((grid,)) for grid in grids_of(layout)), unit=unit_of(layout))

    def after(self, method: Method, fewest: bool = False) -> ExpectedTokens:
        """Return what a step keeps: the most if the content decides, or with `fewest` the fewest.

        Raises:
            FoveateError: the step keeps per tile or frame, and the number of tokens of each is unknown.
            KeepError: the step would keep more tokens than there are.
        """
        single = self.tiles is not None and len(self.tiles) == 1
        try:
            if single or method.per != self.unit:
                counts = [method.bounds(self.layout)[not fewest]]
            else:
                counts = [_bounds(method, tile)[not fewest] for tile in known_tiles(method, self.tiles)]
        except KeepError as error:
            if self.certain:
                raise
            raise KeepError(
                f"{error} (an earlier step lets the content decide, and may leave so few; keep a fraction at {method})"
            ) from None
        known = single or (method.per == self.unit and not method.ragged)
        tiles = tuple(map(one_row, counts)) if known else None
        return ExpectedTokens(one_row(sum(counts)), tiles, self.certain and not method.ragged, self.unit)


def kept_slots(methods: Sequence[Method], layout: Layout) -> Int64[Tensor, " M"]:
    """Return the content tokens that steps keep which are all `fixed`, so look at the layout alone: `(M,)` int64."""
    plan = Plan(slot=torch.arange(layout.content)[None])
    remaining = ExpectedTokens.of(layout)
    for number, method in enumerate(methods):
        blank = torch.zeros(1, plan.slot.shape[1], 1)
        tiles = remaining.tiles
        counts = None if tiles is None else tuple(tile.content for tile in tiles)
        tokens = VisualTokens(blank, remaining.layout, origin=Origin(layout, plan.slot, counts) if number else None)
        plan = plan.compose(Plan(slot=plan_of(method, tokens).slot))
        remaining = remaining.after(method)
    return plan.slot[0]


def _bounds(method: Method, tile: Layout) -> tuple[int, int]:
    """Return the fewest and the most tokens that a method keeps of one tile."""
    return (tile.content, tile.content) if keeps_whole_tile(method, tile.content) else method.bounds(tile)
