"""Plan with a budget for the whole image or clip, for each tile of an image or for each frame of a clip.

A method has one budget. With `per=tile`, `plan_of` plans each tile as a separate image (tiles of one shape as one
batch) and joins the plans; with `per=frame` it does so with each frame of a clip. This works for every method for
images. An image of one tile is one part, and so are a tiled image with `per=frame` and a clip with `per=tile`.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64

from foveate.errors import FoveateError
from foveate.layout import Segment, one_row, remembered
from foveate.method import Method, Per
from foveate.plan import Plan
from foveate.tokens import Layout, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


def plan_of(method: Method, tokens: VisualTokens) -> Plan:
    """Plan these tokens with a method, with its budget for the image or clip, or for each tile or frame of it.

    Raises:
        FoveateError: the method keeps per tile or frame, but after an earlier step the number of tokens of each is
            unknown.
    """
    count, origin = tokens.features.shape[1], tokens.origin
    whole = tokens.layout if origin is None else origin.layout
    if method.per != unit_of(whole):
        return method.plan(tokens)
    parts = parts_of(whole)
    if origin is None:
        tiles = [segment for segment, _ in parts]
        order = torch.cat([numbers for _, numbers in parts]).to(tokens.features.device, non_blocking=True)
        index = order.expand(tokens.features.shape[0], -1)
    else:
        layouts = None if origin.left is None else tuple(map(one_row, origin.left))
        if len(parts) == 1:
            layouts = (one_row(count),)
        tiles = [layout.segments[0] for layout in known_tiles(method, layouts)]
        tile = torch.empty(origin.layout.content, dtype=torch.int64)
        for number, (_, numbers) in enumerate(parts):
            tile[numbers] = number
        index = tile.to(origin.slot.device, non_blocking=True)[origin.slot].argsort(dim=1, stable=True)
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


def unit_of(layout: Layout) -> Per:
    """Return what can have a budget of its own in an image or clip: "frame" in a clip of several, otherwise "tile"."""
    return "frame" if any(segment.t > 1 for segment in layout.segments) else "tile"


def parts_of(layout: Layout) -> tuple[tuple[Segment, Int64[Tensor, " n"]], ...]:
    """Return the frames of a clip, or the tiles of an image: the grid and the content tokens of each.

    >>> [(part.t, part.h, part.w, places.tolist()) for part, places in parts_of(Layout((Segment(2, 1, 2),)))]
    [(1, 1, 2, [0, 1]), (1, 1, 2, [2, 3])]
    """
    return layout.tiles if unit_of(layout) == "tile" else _frames(layout)


def grids_of(layout: Layout) -> tuple[Segment, ...]:
    """Return the grid of each of the `parts_of` an image or clip, without making tensors.

    >>> [(grid.t, grid.h, grid.w) for grid in grids_of(Layout((Segment(2, 1, 2),)))]
    [(1, 1, 2), (1, 1, 2)]
    """
    if unit_of(layout) == "tile":
        return layout.tile_grids
    return tuple(Segment(1, segment.h, segment.w) for segment in layout.segments for _ in range(segment.t))


@remembered
def _frames(layout: Layout) -> tuple[tuple[Segment, Tensor], ...]:
    frames = grids_of(layout)
    begins = accumulate((frame.count for frame in frames), initial=0)
    return tuple((frame, torch.arange(begin, begin + frame.count)) for frame, begin in zip(frames, begins))


def known_tiles(method: Method, tiles: tuple[Layout, ...] | None) -> tuple[Layout, ...]:
    """Return the layouts of the tiles or frames that a method with `per=tile` or `per=frame` acts on.

    Raises:
        FoveateError: the number of tokens of each is unknown (`tiles` is None).
    """
    if tiles is None:
        raise FoveateError(
            f"{method} keeps per {method.per}, and an earlier step of the spec leaves open how many tokens of each "
            f"{method.per} there are; write per={method.per} at the earlier steps too"
        )
    return tiles


def keeps_whole_tile(method: Method, count: int) -> bool:
    """Return whether a tile or frame of `count` tokens fits into the method's budget, so that all its tokens stay."""
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
