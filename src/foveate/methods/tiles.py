"""Budgets per image or per tile: what the engine asks of a method, whichever the spec says.

A method knows of one budget. With `per=tile` each tile of an image is planned as if it were an image of its own, tiles
of one shape as one batch, and the plans are joined. So it works for every method, and on an image of one tile it
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.errors import FoveateError, KeepError
from foveate.methods.base import Method
from foveate.plan import Plan
from foveate.tokens import Layout, Origin, Segment, VisualTokens


@dataclass(frozen=True)
class Remaining:
    """What is known of the tokens of an image in front of a step, before any pixel is seen.

    Attributes:
        layout: of all of them; one strip behind the first step.
        tiles: of each tile; None if an earlier step left open how many tokens of each remain.
        certain: whether no earlier step let the content decide.
    """

    layout: Layout
    tiles: tuple[Layout, ...] | None
    certain: bool = True

    @classmethod
    def of(cls, layout: Layout) -> Remaining:
        """A whole image."""
        return cls(layout, tuple(Layout((segment,)) for segment, _ in layout.tiles))

    def after(self, method: Method, fewest: bool = False) -> Remaining:
        """What a step leaves; of a method that lets the content decide, the most, or the fewest.

        Raises:
            FoveateError: the step keeps per tile, and it isn't known how many tokens each tile has.
            KeepError: more would remain than there are.
        """
        one = self.tiles is not None and len(self.tiles) == 1
        try:
            if one or method.per == "image":
                counts = [method.bounds(self.layout)[not fewest]]
            else:
                counts = [_bounds(method, tile)[not fewest] for tile in _known(method, self.tiles)]
        except KeepError as error:
            if self.certain:
                raise
            raise KeepError(
                f"{error} (an earlier step lets the content decide, and may leave so few; keep a fraction at {method})"
            ) from None
        known = one or (method.per == "tile" and not method.ragged)
        tiles = tuple(map(_strip, counts)) if known else None
        return Remaining(_strip(sum(counts)), tiles, self.certain and not method.ragged)


def plan_of(method: Method, tokens: VisualTokens) -> Plan:
    """What a method makes of these tokens, with its budget for the image or for each of its tiles.

    Raises:
        FoveateError: the step keeps per tile, and an earlier one left open how many tokens each tile has.
    """
    if method.per == "image":
        return method.plan(tokens)
    count, origin = tokens.features.shape[1], tokens.origin
    if origin is None:
        parts = tokens.layout.tiles
        tiles = [segment for segment, _ in parts]
        index = torch.cat([each for _, each in parts]).to(tokens.features.device).expand(tokens.features.shape[0], -1)
    else:
        parts = origin.layout.tiles
        left = None if origin.left is None else tuple(map(_strip, origin.left))
        if len(parts) == 1:
            left = (_strip(count),)
        tiles = [layout.segments[0] for layout in _known(method, left)]
        tile = torch.empty(origin.layout.content, dtype=torch.int64)
        for number, (_, each) in enumerate(parts):
            tile[each] = number
        index = tile.to(origin.slot.device)[origin.slot].argsort(dim=1, stable=True)
    if len(tiles) == 1:
        return method.plan(tokens)
    edges = pairwise(accumulate((tile.count for tile in tiles), initial=0))
    indices = [index[:, begin:end] for begin, end in edges]
    plans: dict[int, Plan] = {}
    for segment in dict.fromkeys(tiles):
        members = [number for number, tile in enumerate(tiles) if tile == segment]
        if _keeps_all(method, segment.count):
            whole = torch.arange(segment.count, device=index.device).expand(index.shape[0], -1)
            plans |= dict.fromkeys(members, Plan(slot=whole))
            continue
        batch = tokens.parts([indices[number] for number in members], Layout((segment,)))
        plan = method.plan(batch)
        plans |= dict(zip(members, _rows(plan, index.shape[0])))
    return _joined([(indices[number], plans[number]) for number in range(len(tiles))], count)


def slots_left(methods: Sequence[Method], layout: Layout) -> Int64[Tensor, " M"]:
    """Which content tokens are left by steps that are all `fixed`, and so look at the layout alone: `(M,)` int64."""
    plan = Plan(slot=torch.arange(layout.content)[None])
    remaining = Remaining.of(layout)
    for number, method in enumerate(methods):
        blank = torch.zeros(1, plan.slot.shape[1], 1)
        tiles = remaining.tiles
        left = None if tiles is None else tuple(tile.content for tile in tiles)
        tokens = VisualTokens(blank, remaining.layout, origin=Origin(layout, plan.slot, left) if number else None)
        plan = plan.compose(Plan(slot=plan_of(method, tokens).slot))
        remaining = remaining.after(method)
    return plan.slot[0]


def _strip(count: int) -> Layout:
    return Layout((Segment(1, 1, count),))


def _known(method: Method, tiles: tuple[Layout, ...] | None) -> tuple[Layout, ...]:
    if tiles is None:
        raise FoveateError(
            f"{method} keeps per tile, and an earlier step of the spec leaves open how many tokens of each tile there "
            "are; write per=tile at the earlier steps too"
        )
    return tiles


def _keeps_all(method: Method, count: int) -> bool:
    """Whether a tile is so small that the budget holds all of it."""
    return method.keep.tokens is not None and method.keep.tokens >= count


def _bounds(method: Method, tile: Layout) -> tuple[int, int]:
    return (tile.content, tile.content) if _keeps_all(method, tile.content) else method.bounds(tile)


def _rows(plan: Plan, images: int) -> list[Plan]:
    """A batch of several tiles of the same images, one tile behind the other, taken apart."""
    starts = range(0, plan.slot.shape[0], images)

    def of(values: Tensor | None, start: int) -> Tensor | None:
        return None if values is None else values[start : start + images]

    return [
        Plan(
            plan.slot[start : start + images],
            of(plan.group, start),
            of(plan.weight, start),
            of(plan.mix, start),
            of(plan.valid, start),
        )
        for start in starts
    ]


def _joined(parts: list[tuple[Int64[Tensor, "B _"], Plan]], tokens: int) -> Plan:
    """Plans over parts of the same images, `(B, n)` int64 each, as one over all their `tokens` tokens."""
    slot = torch.cat([index.gather(1, plan.slot) for index, plan in parts], dim=1)
    valid = None
    order = slot
    if any(plan.valid is not None for _, plan in parts):
        valid = torch.cat(
            [torch.ones_like(plan.slot, dtype=torch.bool) if plan.valid is None else plan.valid for _, plan in parts],
            dim=1,
        )
        order = slot.masked_fill(~valid, tokens)
    order = order.argsort(dim=1, stable=True)
    slot = slot.gather(1, order)
    valid = None if valid is None else valid.gather(1, order)
    if any(plan.mix is not None for _, plan in parts):
        rows: list[Float[Tensor, "B _ N"]] = []
        for index, plan in parts:
            mix = plan.matrix(index.shape[1])
            wide = mix.new_zeros(*mix.shape[:2], tokens)
            rows.append(wide.scatter(2, index[:, None].expand(-1, mix.shape[1], -1), mix))
        mix = torch.cat(rows, dim=1)
        return Plan(slot, mix=mix.gather(1, order[..., None].expand(-1, -1, tokens)), valid=valid)
    if all(plan.group is None for _, plan in parts):
        return Plan(slot, valid=valid)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    group = torch.full((slot.shape[0], tokens), -1, dtype=torch.int64, device=slot.device)
    weighted = any(plan.weight is not None for _, plan in parts)
    weight = torch.zeros(group.shape, device=slot.device) if weighted else None
    begin = 0
    for index, plan in parts:
        whole = plan.grouped(index.shape[1]) if plan.group is None else plan
        assert whole.group is not None
        into = rank.gather(1, whole.group.clamp(min=0) + begin)
        group = group.scatter(1, index, into.masked_fill(whole.group < 0, -1))
        if weight is not None:
            weight = weight.scatter(1, index, whole.weights().to(weight.dtype))
        begin += plan.slot.shape[1]
    return Plan(slot, group, weight, None, valid)
