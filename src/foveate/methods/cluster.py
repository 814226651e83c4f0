"""Merge similar tokens: Cluster & Aggregate.  Omri et al. 2025, arXiv 2504.17892 (our reading)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64

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
from foveate.methods.arithmetic import products
from foveate.methods.arithmetic.groups import highest, in_order, middles, sizes
from foveate.methods.arithmetic.products import BLOCK_BYTES
from foveate.numbers import SEED, Between
from foveate.plan import AVERAGED, SELECTED, WEIGHTED

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

_MOST_DISTANCES = 2**24
"""The most distances between tokens and centres that a CPU keeps from round to round (64 MiB)."""


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
    unchanged_if_all = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of one encoder layer if `take` uses it."""
        return (EncoderAttention(layer=self.layer),) if self.take in {"weighted", "salient"} else ()

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the distances to centres, a block of them twice, and copies of centres."""
        kept = self.count(one_row(tokens))
        distances = 4 * tokens * kept
        block = min(distances, BLOCK_BYTES)
        return (distances if tokens * kept <= _MOST_DISTANCES else 0) + block + 12 * kept * width + 30 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Run k-means over all images as one batch."""
        features = tokens.features.float()
        kept = self.count(tokens.layout)
        centre = self._start(features, kept)
        if products.on_cpu(features):
            group = torch.stack([_grouped(x, start, self.iterations) for x, start in zip(features, centre)])
        else:
            group = _grouped_at_once(features, centre, self.iterations)
        plan = in_order(middles(group, kept), group)
        if self.take == "mean":
            return plan
        assert plan.group is not None
        if self.take == "medoid":
            away = features - plan.apply(features).gather(1, plan.group[..., None].expand_as(features))
            return Plan(slot=highest(-away.square().sum(dim=-1), plan.group, kept).sort(dim=1).values)
        attention = tokens.signals[self.needs[0]].float()
        if self.take == "salient":
            return Plan(slot=highest(attention, plan.group, kept).sort(dim=1).values)
        total = torch.zeros_like(plan.slot, dtype=torch.float32).scatter_add(1, plan.group, attention)
        total = total.gather(1, plan.group)
        # A cluster without any attention becomes its plain mean.
        return replace(plan, weight=torch.where(total > 0, attention / total, plan.weights()))

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: each round compares tokens with centres and recomputes the means; k-means++ adds draws."""
        kept, rounds = self.count(one_row(tokens)), self.iterations + 1
        draws = kept if self.start == "plusplus" else 0
        work = rounds * 4 * tokens * kept * width + draws * 3 * tokens * width
        made = {"mean": AVERAGED, "weighted": 16 + WEIGHTED, "medoid": 18 + SELECTED, "salient": 7 + SELECTED}
        return Effort(work, 9 * rounds + 33 + max(0, 9 * draws - 10) + made[self.take], 1)

    def _start(self, x: Float32[Tensor, "B N D"], kept: int) -> Float32[Tensor, "B M D"]:
        images, count, width = x.shape
        if self.start == "stride":
            index = (torch.arange(kept, device=x.device) * 2 + 1) * count // (2 * kept)
            return x[:, index]
        from foveate.methods.arithmetic import recorded

        draws = recorded.draws(self.seed, kept).to(x.device, non_blocking=True)
        chosen = x.gather(1, (draws[0] * count).long().clamp(max=count - 1).expand(images, 1, width))
        centres = [chosen]
        nearest: Float32[Tensor, "B N"] | None = None
        for draw in draws[1:]:
            away = (x - chosen).square().sum(-1)
            nearest = away if nearest is None else torch.minimum(nearest, away)
            share = nearest.cumsum(dim=1)
            place = torch.searchsorted(share, draw * share[:, -1:], right=True).clamp(max=count - 1)
            chosen = x.gather(1, place[..., None].expand(-1, -1, width))
            centres.append(chosen)
        return torch.cat(centres, dim=1)


def _grouped_at_once(
    x: Float32[Tensor, "B N D"], centre: Float32[Tensor, "B M D"], rounds: int
) -> Int64[Tensor, "B N"]:
    """Cluster the tokens of all images on an accelerator, with few operations and one wait of the host.

    Rounds first run as if no cluster became empty; if one did, they run again and fill it. What `torch.export` records
    can't ask whether one did: there, every round fills.
    """
    kept, first = centre.shape[1], centre
    numbers = torch.arange(kept, device=x.device)[:, None]
    if not torch.compiler.is_compiling():
        counts: list[Tensor] = []
        _, group = _nearest(x, centre)
        for _ in range(rounds):
            centre, size = _means(x, group, numbers)
            counts.append(size)
            _, group = _nearest(x, centre)
        counts.append((group[:, None] == numbers).sum(dim=2, keepdim=True).float())
        if bool(torch.cat(counts, dim=2).all()):
            return group
    length = x.square().sum(-1)
    away, group = _nearest(x, first)
    group = _filled(group, away + length, kept)
    for _ in range(rounds):
        away, group = _nearest(x, _means(x, group, numbers)[0])
        group = _filled(group, away + length, kept)
    return group


def _nearest(
    x: Float32[Tensor, "B N D"], centre: Float32[Tensor, "B M D"]
) -> tuple[Float32[Tensor, "B N"], Int64[Tensor, "B N"]]:
    """Return the distance of each token to its nearest centre, less |x|^2, and which centre it is."""
    # |x|^2 is the same for every centre, so leaving it out changes no choice.
    nearest = torch.baddbmm(centre.square().sum(-1)[:, None], x, centre.transpose(1, 2), alpha=-2).min(dim=2)
    return nearest.values, nearest.indices


def _means(
    x: Float32[Tensor, "B N D"], group: Int64[Tensor, "B N"], numbers: Int64[Tensor, "M 1"]
) -> tuple[Float32[Tensor, "B M D"], Float32[Tensor, "B M 1"]]:
    """Return the mean and the size of each cluster."""
    inside = (group[:, None] == numbers).float()
    size = inside.sum(dim=2, keepdim=True)
    return torch.bmm(inside, x).div_(size), size


def _filled(group: Int64[Tensor, "B N"], away: Float32[Tensor, "B N"], kept: int) -> Int64[Tensor, "B N"]:
    """Give each empty cluster the token that is farthest from its centre, of those that aren't first in theirs."""
    images, count = group.shape
    empty = sizes(group, kept) == 0
    index = torch.arange(count, device=group.device).expand(images, -1)
    first = index.new_full((images, kept), count).scatter_reduce(1, group, index, "amin")
    free = away.masked_fill(first.gather(1, group) == index, -torch.inf)
    farthest = free.argsort(dim=1, descending=True, stable=True)[:, :kept]
    mover = farthest.gather(1, (empty.cumsum(dim=1) - 1).clamp(min=0))
    target = torch.where(empty, torch.arange(kept, device=group.device), -1)
    moved = torch.full_like(group, -1).scatter_reduce(1, mover, target, "amax")
    return torch.where(moved >= 0, moved, group)


def _grouped(x: Float32[Tensor, "N D"], centre: Float32[Tensor, "M D"], rounds: int) -> Int64[Tensor, " N"]:
    """Cluster the tokens of one image on a CPU: the same as rounds of `_nearest`, with less work.

    A round compares tokens only with the centres that moved in the last round; the rounds end when none moves. Empty
    clusters are filled only in rounds that have some. What isn't done to features is done by NumPy, which starts an
    operation in a fraction of the time and finds the least number of a row several times as fast.
    """
    count, kept = x.shape[0], centre.shape[0]
    # Above this size, distances aren't kept from round to round.
    distance = x.new_empty(count, kept) if count * kept <= _MOST_DISTANCES else None
    centre = centre.clone()
    moved = np.arange(kept)
    group = before = np.full(count, -1)
    for number in range(rounds + 1):
        if number > 1:
            changed = np.flatnonzero(group != before)
            touched = np.zeros(kept, dtype=bool)
            touched[before[changed]] = touched[group[changed]] = True
            moved = np.flatnonzero(touched)
            if not len(moved):
                break
        if number:
            centre.index_copy_(0, _tensor(moved), _means_of(x, group, moved, kept))
        before = group
        group, away = _compared(x, centre, moved, distance)
        if not np.bincount(group, minlength=kept).all():
            filled = _filled(_tensor(group)[None], (away() + x.square().sum(dim=1))[None], kept)
            group = filled[0].numpy()
    return _tensor(group)


def _compared(
    x: Float32[Tensor, "N D"],
    centre: Float32[Tensor, "M D"],
    moved: Int64[np.ndarray, " C"],
    distance: Float32[Tensor, "N M"] | None,
) -> tuple[Int64[np.ndarray, " N"], Callable[[], Float32[Tensor, " N"]]]:
    """Return which centre is nearest to each token, and what computes its distance, less |x|^2; update distances."""
    # |x|^2 is the same for every centre, so leaving it out changes no choice.
    if distance is not None:
        if len(moved) == centre.shape[0]:
            torch.addmm(centre.square().sum(dim=1), x, centre.T, alpha=-2, out=distance)
        else:
            target = centre[_tensor(moved)]
            length = target.square().sum(dim=1)[:, None]
            for rows in products.row_blocks(len(x), len(moved), x):
                distance.numpy()[rows, moved] = torch.addmm(length, target, x[rows].T, alpha=-2).numpy().T
        return distance.numpy().argmin(axis=1), lambda: distance.amin(dim=1)
    length = centre.square().sum(dim=1)
    near, group = x.new_empty(len(x)), np.empty(len(x), dtype=np.int64)
    for rows in products.row_blocks(len(x), len(centre), x):
        values = torch.addmm(length, x[rows], centre.T, alpha=-2)
        near[rows], group[rows] = values.amin(dim=1), values.numpy().argmin(axis=1)
    return group, lambda: near


def _means_of(
    x: Float32[Tensor, "N D"], group: Int64[np.ndarray, " N"], clusters: Int64[np.ndarray, " C"], kept: int
) -> Float32[Tensor, "C D"]:
    """Return the means of some clusters."""
    size = np.bincount(group, minlength=kept)[clusters]
    if len(clusters) < kept:
        inside = np.zeros(kept, dtype=bool)
        inside[clusters] = True
        members = np.flatnonzero(inside[group])
        members = members[group[members].argsort(kind="stable")]
    else:
        members = group.argsort(kind="stable")
    begins = _tensor(size.cumsum() - size)
    # Sums over the rows of each cluster, in the order of tokens.
    sums = torch.embedding_bag(x, _tensor(members), begins, mode=0)[0]
    return sums.div_(_tensor(size)[:, None])


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    """Return the numbers of an array as a tensor, in the same memory."""
    return torch.from_numpy(values)  # pyright: ignore[reportUnknownMemberType]
