"""Plan with a budget for the whole image or for each of its tiles.

A method has one budget. With `per=tile`, `plan_of` plans each tile as a separate image (tiles of one shape as one
batch) and joins the plans. This works for every method, and changes nothing for an image of one tile.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.errors import FoveateError
from foveate.layout import one_row
from foveate.method import Method
from foveate.plan import Plan
from foveate.tokens import Layout, VisualTokens


def plan_of(method: Method, tokens: VisualTokens) -> Plan:
    """Plan these tokens with a method, with its budget for the image or for each of its tiles.

    Raises:
        FoveateError: the method keeps per tile, but after an earlier step the number of tokens of each tile is unknown.
    """
    if method.per == "image":
        return method.plan(tokens)
    count, origin = tokens.features.shape[1], tokens.origin
    if origin is None:
        parts = tokens.layout.tiles
        tiles = [segment for segment, _ in parts]
        order = torch.cat([numbers for _, numbers in parts]).to(tokens.features.device)
        index = order.expand(tokens.features.shape[0], -1)
    else:
        parts = origin.layout.tiles
        layouts = None if origin.left is None else tuple(map(one_row, origin.left))
        if len(parts) == 1:
            layouts = (one_row(count),)
        tiles = [layout.segments[0] for layout in known_tiles(method, layouts)]
        tile = torch.empty(origin.layout.content, dtype=torch.int64)
        for number, (_, numbers) in enumerate(parts):
            tile[numbers] = number
        index = tile.to(origin.slot.device)[origin.slot].argsort(dim=1, stable=True)
    if len(tiles) == 1:
        return method.plan(tokens)
    edges = pairwise(accumulate((tile.count for tile in tiles), initial=0))
    indices = [index[:, begin:end] for begin, end in edges]
    plans: dict[int, Plan] = {}
    for segment in dict.fromkeys(tiles):
        members = [number for number, tile in enumerate(tiles) if tile == segment]
        if keeps_whole_tile(method, segment.count):
            everything = torch.arange(segment.count, device=index.device).expand(index.shape[0], -1)
            plans |= dict.fromkeys(members, Plan(slot=everything))
            continue
        batch = tokens.parts([indices[number] for number in members], Layout((segment,)))
        plan = method.plan(batch)
        plans |= dict(zip(members, _rows(plan, index.shape[0])))
    return _joined([(indices[number], plans[number]) for number in range(len(tiles))], count)


def known_tiles(method: Method, tiles: tuple[Layout, ...] | None) -> tuple[Layout, ...]:
    """Return the layouts of the tiles that a method with `per=tile` acts on.

    Raises:
        FoveateError: the number of tokens of each tile is unknown (`tiles` is None).
    """
    if tiles is None:
        raise FoveateError(
            f"{method} keeps per tile, and an earlier step of the spec leaves open how many tokens of each tile there "
            "are; write per=tile at the earlier steps too"
        )
    return tiles


def keeps_whole_tile(method: Method, count: int) -> bool:
    """Return whether a tile of `count` tokens fits into the method's budget, so that all its tokens stay."""
    return method.keep.tokens is not None and method.keep.tokens >= count


def _rows(plan: Plan, images: int) -> list[Plan]:
    """Split the plan of a batch that holds several tiles of the same images, one tile after the other."""
    return [plan.rows(slice(start, start + images)) for start in range(0, plan.slot.shape[0], images)]


def _joined(parts: list[tuple[Int64[Tensor, "B _"], Plan]], tokens: int) -> Plan:
    """Join plans over parts of the same images, `(B, n)` int64 each, into one over all their `tokens` tokens."""
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
        grouped = plan.grouped(index.shape[1]) if plan.group is None else plan
        assert grouped.group is not None
        into = rank.gather(1, grouped.group.clamp(min=0) + begin)
        group = group.scatter(1, index, into.masked_fill(grouped.group < 0, -1))
        if weight is not None:
            weight = weight.scatter(1, index, grouped.weights().to(weight.dtype))
        begin += plan.slot.shape[1]
    return Plan(slot, group, weight, None, valid)
