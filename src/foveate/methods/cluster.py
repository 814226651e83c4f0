"""Merge similar tokens: Cluster & Aggregate.  Omri et al. 2025, arXiv 2504.17892 (our reading)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from foveate.methods import (
    Effort,
    EncoderAttention,
    Method,
    Plan,
    Positions,
    Signal,
    VisualTokens,
    one_row,
    register,
)
from foveate.methods.arithmetic.groups import highest, in_order, middles, sizes
from foveate.numbers import SEED, Between


@register("cluster")
@dataclass(frozen=True)
class Cluster(Method):
    """Run k-means over the features in float32 and keep one token of each cluster, in the order of their slots.

    We saw neither the paper's text nor its code: start, iterations and distance are our choice. The centres start from
    evenly spaced tokens ("stride"), or from k-means++ with a seed. A cluster that loses its last member gets the token
    that is farthest from its current centre. The slot of a cluster is the member nearest to its mean index.

    `take` chooses the token that a cluster becomes. "mean" is the plain mean of its members, "weighted" their mean
    weighted by [CLS] attention. "medoid" keeps the member nearest to the mean and drops the others, "salient" the
    member with the highest [CLS] attention. "weighted" and "salient" combine the paper's clustering with its saliency.
    Its saliency alone, taken from the encoder, is `cls`; its spatial and random sampling are `stride` and `random`.

    Budget: `keep` is the number of clusters.

    >>> tokens = VisualTokens.of(torch.randn(2, 576, 16), (24, 24))
    >>> plan = Cluster(keep=64).plan(tokens)
    >>> plan.apply(tokens.features).shape, plan.size().sum(dim=1).tolist()
    (torch.Size([2, 64, 16]), [576, 576])
    """

    positions: Positions = "pack"
    start: Literal["stride", "plusplus"] = "stride"
    seed: Annotated[int, SEED] = 0
    iterations: Annotated[int, Between(0, 10_000)] = 10
    take: Literal["mean", "weighted", "medoid", "salient"] = "mean"
    layer: int = -2

    paper = "arXiv 2504.17892"

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of one encoder layer if `take` uses it."""
        return (EncoderAttention(layer=self.layer),) if self.take in {"weighted", "salient"} else ()

    def plan(self, tokens: VisualTokens) -> Plan:
        """Run k-means over all images as one batch."""
        features = tokens.features.float()
        kept = self.count(tokens.layout)
        centre = self._start(features, kept)
        group = self._assign(features, centre)
        for _ in range(self.iterations):
            before, group = group, self._assign(features, _means(features, group, kept))
            if _free_to_look(group) and torch.equal(before, group):
                break
        plan = in_order(middles(group, kept), group)
        if self.take == "mean":
            return plan
        if self.take == "medoid":
            away = features - _means(features, group, kept).gather(1, group[..., None].expand_as(features))
            return Plan(slot=highest(-away.square().sum(dim=-1), group, kept).sort(dim=1).values)
        attention = tokens.signals[self.needs[0]].float()
        if self.take == "salient":
            return Plan(slot=highest(attention, group, kept).sort(dim=1).values)
        assert plan.group is not None
        total = torch.zeros_like(plan.slot, dtype=torch.float32).scatter_add(1, plan.group, attention)
        total = total.gather(1, plan.group)
        # A cluster without any attention becomes its plain mean.
        return replace(plan, weight=torch.where(total > 0, attention / total, plan.weights()))

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: each round compares tokens with centres and recomputes the means; k-means++ adds draws."""
        kept, rounds = self.count(one_row(tokens)), self.iterations + 1
        draws = kept if self.start == "plusplus" else 0
        work = rounds * (2 * tokens * kept * width + 2 * tokens * width) + draws * 3 * tokens * width
        return Effort(work, 20 * rounds + 8 * draws + 20)

    def _start(self, x: Float32[Tensor, "B N D"], kept: int) -> Float32[Tensor, "B M D"]:
        images, count, width = x.shape
        if self.start == "stride":
            index = (torch.arange(kept, device=x.device) * 2 + 1) * count // (2 * kept)
            return x[:, index]
        draws = torch.rand(kept, generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        chosen = x.gather(1, (draws[0] * count).long().clamp(max=count - 1).expand(images, 1, width))
        centres = [chosen]
        nearest = (x - chosen).square().sum(-1)
        for draw in draws[1:]:
            share = nearest.cumsum(dim=1)
            place = torch.searchsorted(share, draw * share[:, -1:], right=True).clamp(max=count - 1)
            chosen = x.gather(1, place[..., None].expand(-1, -1, width))
            centres.append(chosen)
            nearest = torch.minimum(nearest, (x - chosen).square().sum(-1))
        return torch.cat(centres, dim=1)

    def _assign(self, x: Float32[Tensor, "B N D"], centre: Float32[Tensor, "B M D"]) -> Int64[Tensor, "B N"]:
        """Assign each token to its nearest centre, `(B, N)`, and leave no cluster empty."""
        images, count, _ = x.shape
        kept = centre.shape[1]
        # |x|^2 is the same for every centre, so leaving it out changes no choice.
        distance = torch.baddbmm(centre.square().sum(-1)[:, None], x, centre.transpose(1, 2), alpha=-2)
        away, group = distance.min(dim=2)
        empty = sizes(group, kept) == 0
        if _free_to_look(empty) and not empty.any():
            return group
        away = away + x.square().sum(-1)
        # The first member of each cluster stays. The other tokens farthest from their centres fill the empty clusters.
        index = torch.arange(count, device=x.device).expand(images, -1)
        first = index.new_full((images, kept), count).scatter_reduce(1, group, index, "amin")
        free = away.masked_fill(first.gather(1, group) == index, -torch.inf)
        farthest = free.argsort(dim=1, descending=True, stable=True)[:, :kept]
        mover = farthest.gather(1, (empty.cumsum(dim=1) - 1).clamp(min=0))
        target = torch.where(empty, torch.arange(kept, device=x.device), -1)
        moved = torch.full_like(group, -1).scatter_reduce(1, mover, target, "amax")
        return torch.where(moved >= 0, moved, group)


def _free_to_look(values: Shaped[Tensor, "..."]) -> bool:
    """Return whether a branch on these values is free; on an accelerator it would make the host wait."""
    return values.device.type == "cpu"


def _means(x: Float32[Tensor, "B N D"], group: Int64[Tensor, "B N"], kept: int) -> Float32[Tensor, "B M D"]:
    return Plan(slot=group[:, :kept], group=group).apply(x)
