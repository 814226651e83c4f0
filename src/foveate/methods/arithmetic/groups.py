"""Compute the sizes and slots of groups of tokens, and the plan of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64

from foveate.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def sizes(group: Int64[Tensor, "B N"], kept: int) -> Int64[Tensor, "B M"]:
    """Count the tokens of each of `kept` groups: `(B, M)` int64."""
    return torch.zeros(group.shape[0], kept, dtype=torch.int64, device=group.device).scatter_add(
        1, group, torch.ones_like(group)
    )


def middles(group: Int64[Tensor, "B N"], kept: int) -> Int64[Tensor, "B M"]:
    """Return the member of each group nearest to its mean index, the lower of two: `(B, M)` int64."""
    images, count = group.shape
    index = torch.arange(count, device=group.device).expand(images, -1)
    size = sizes(group, kept)
    total = torch.zeros_like(size).scatter_add(1, group, index)
    away = (index * size.gather(1, group) - total.gather(1, group)).abs()
    nearest = torch.full_like(size, torch.iinfo(torch.int64).max)
    return nearest.scatter_reduce(1, group, away * count + index, "amin") % count


def highest(score: Float[Tensor, "B N"], group: Int64[Tensor, "B N"], kept: int) -> Int64[Tensor, "B M"]:
    """Return the member of each group with the highest score, the first of equal ones: `(B, M)` int64.

    >>> highest(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[0, 0, 1, 1]]), kept=2).tolist()
    [[1, 2]]
    """
    falling = score.argsort(dim=1, descending=True, stable=True)
    rank = falling.argsort(dim=1)
    best = torch.full_like(rank[:, :kept], rank.shape[1]).scatter_reduce(1, group, rank, "amin")
    return falling.gather(1, best)


def in_order(slot: Int64[Tensor, "B M"], group: Int64[Tensor, "B N"]) -> Plan:
    """Return the plan of groups at these slots, with the groups sorted by slot.

    Args:
        slot: `(B, M)` int64, a member of each group.
        group: `(B, N)` int64, the group of each token, counted as in `slot`; -1 if the token is dropped.

    >>> plan = in_order(torch.tensor([[3, 0]]), torch.tensor([[1, 1, -1, 0]]))
    >>> plan.slot.tolist(), plan.group.tolist()
    ([[0, 3]], [[0, 0, -1, 1]])
    """
    slot, order = slot.sort(dim=1)
    numbers = torch.arange(slot.shape[1], device=slot.device).expand_as(slot)
    rank = torch.zeros_like(order).scatter(1, order, numbers)
    return Plan(slot=slot, group=torch.where(group < 0, -1, rank.gather(1, group.clamp(min=0))))
