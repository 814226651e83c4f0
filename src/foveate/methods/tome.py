"""Merge the most similar pairs of tokens.  ToMe, Bolya et al. 2023, arXiv 2210.09461."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Float32, Int64

from foveate.methods import (
    Effort,
    EncoderKeys,
    FoveateError,
    KeepError,
    Method,
    Plan,
    Positions,
    Signal,
    VisualTokens,
    one_row,
    register,
)
from foveate.methods.arithmetic import products
from foveate.methods.arithmetic.groups import in_order, middles
from foveate.methods.arithmetic.products import BLOCK_BYTES, lengths, row_blocks
from foveate.plan import AVERAGED

if TYPE_CHECKING:
    from torch import Tensor

_SHORTEST = 1e-12
"""The least norm that is divided by, as in torch's `normalize`."""


@register("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """Merge the most similar tokens by bipartite soft matching in rounds; a merged token is the mean of its members.

    A round splits the tokens alternately into two halves. Each token of the first half is matched with the most similar
    token of the second half. The most similar pairs are merged, to a mean weighted by how many tokens each stands for.
    A round could merge half of the tokens, but then it would merge every token of the first half, even those that
    resemble no other; so it merges at most a quarter of the remaining tokens, or `per_round` of them. Similarity is
    that of features, or with `metric=keys` of the keys of encoder layer `layer`, mean over heads. The question is not
    read. The method keeps exactly the budget, in raster order: the plain mean of all tokens that were merged, at the
    place of the member nearest to their mean place.

    `tome:144@encoder` acts inside the encoder, as in the paper: a few tokens merge before each encoder layer but the
    first, up to the last one whose output is read. Equally many merge at each, or `per_round` at each until the budget
    is met. So the encoder is faster too. There `metric=auto` compares keys of the previous layer, and attention is
    proportional: log(size) is added to the logits of a token that stands for several. [CLS] is never merged. The
    encoder of the embedded model has few layers and does better with `metric=features` there; `foveate bench --spec
    tome@encoder --spec tome:metric=features@encoder` shows it.

    Departures from the paper: inside the encoder, the paper merges between attention and MLP, this method after the
    MLP; and [CLS] isn't counted among the tokens of the first half. The paper does not merge after the encoder; there,
    the decoder's attention is unchanged. Between rounds at one place, tokens are in the order of the authors' code: the
    remaining tokens of the first half, most similar first, then the second half. Between encoder layers they are in
    raster order.

    Cost: per round the cosines of half of the tokens with the other half, a block of rows at a time.

    >>> features = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    >>> plan = ToMe(keep=3).plan(VisualTokens.of(features, (2, 2)))
    >>> plan.slot.tolist(), plan.group.tolist()
    ([[0, 2, 3]], [[0, 0, 1, 2]])
    """

    positions: Positions = "pack"
    per_round: int | None = None
    metric: Literal["auto", "features", "keys"] = "auto"
    layer: int = -1

    paper = "arXiv 2210.09461"
    unchanged_if_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_round is not None and self.per_round < 1:
            raise FoveateError(f"per_round={self.per_round} merges nothing; merge at least 1 a round, or leave it out")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Keys of one encoder layer, if keys are compared."""
        return (EncoderKeys(layer=self.layer),) if self.metric == "keys" else ()

    def in_encoder(self, arriving: int, layers: int) -> tuple[Method, ...]:
        """Return one step per layer: each merges `per_round` tokens or equally many, by keys unless `metric` is set."""
        here = replace(self, metric="keys") if self.metric == "auto" else self
        if self.per_round is None:
            return Method.in_encoder(here, arriving, layers)
        kept = self.keep.count(arriving)
        if arriving - layers * self.per_round > kept:
            raise KeepError(
                f"{self} merges {self.per_round} tokens in front of each of {layers} encoder layers, which leaves "
                f"{arriving - layers * self.per_round} of {arriving}; merge {-((kept - arriving) // layers)} a round"
            )
        left = (max(kept, arriving - number * self.per_round) for number in range(1, layers + 1))
        return tuple(replace(here, keep=count) for count in left)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the features of two rounds, or of one with blocks of cosines."""
        first = 2 * tokens * width + min(tokens**2, BLOCK_BYTES)
        second = 9 * tokens * width // 2 + min(9 * tokens**2 // 16, BLOCK_BYTES)
        return max(6 * tokens * width, first, second) + 60 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Merge in rounds until the budget is met."""
        metric = tokens.signals[self.needs[0]] if self.needs else tokens.features
        metric = metric.float()
        images, left = metric.shape[:2]
        kept = self.count(tokens.layout)
        numbers = torch.arange(left, device=metric.device)
        group = numbers.expand(images, -1)
        size = metric.new_ones(images, left)
        for merges in self._rounds(left, kept):
            order, merged = _matched(metric, merges, 0, numbers)
            left -= merges
            total = size.new_zeros(images, left).scatter_add_(1, merged, size)
            metric = _averaged(metric, order, merges, merged, size / total.gather(1, merged), numbers)
            size, group = total, merged.gather(1, group)
        return in_order(middles(group, kept), group)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate rounds that each compare half of the tokens with the other half, and move all of them."""
        kept, left, work = self.count(one_row(tokens)), tokens, 0.0
        rounds = self._rounds(tokens, kept)
        for merges in rounds:
            work += left**2 * width / 2 + 2 * left * (left - merges) * width
            left -= merges
        return Effort(work, 21 * len(rounds) + 28 + AVERAGED)

    def _rounds(self, tokens: int, kept: int) -> list[int]:
        """Return how many tokens each round merges."""
        rounds: list[int] = []
        while tokens > kept:
            most = max(1, tokens // 4) if self.per_round is None else min(tokens // 2, self.per_round)
            rounds.append(min(tokens - kept, most))
            tokens -= rounds[-1]
        return rounds


def bipartite(metric: Float[Tensor, "B N C"], merges: int, protected: int = 0) -> Int64[Tensor, "B N"]:
    """Match tokens in one round, and return the new token of each: `(B, N)` int64 from 0 to N - merges - 1.

    New tokens are numbered in the order of the authors' code: first the remaining even tokens, most similar first (with
    protected tokens: in order), then odd tokens in order.

    Args:
        metric: `(B, N, C)`, the vectors that are compared, by cosine in float32.
        merges: how many even tokens join an odd one, at most `(N - protected) // 2`.
        protected: how many tokens at the start are never merged, such as [CLS]; 0 to 2.

    >>> bipartite(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]]]), merges=1).tolist()
    [[0, 1, 1, 2]]
    """
    numbers = torch.arange(metric.shape[1], device=metric.device)
    return _matched(metric.float(), merges, protected, numbers)[1]


def _matched(
    metric: Float32[Tensor, "B N C"], merges: int, protected: int, numbers: Int64[Tensor, " _"]
) -> tuple[Int64[Tensor, "B E"], Int64[Tensor, "B N"]]:
    """Return even tokens in the order of their match, the most similar first, and the new token of each token."""
    images, count = metric.shape[:2]
    odd = metric[:, 1::2].contiguous().transpose(1, 2)
    odds, evens = odd.shape[2], count - odd.shape[2]
    # Dividing products passes over fewer numbers than dividing vectors; of an even token, only the best needs it.
    norm = lengths(metric).clamp_(min=_SHORTEST)
    scale = norm[:, None, 1::2].reciprocal()

    def nearest(rows: slice) -> tuple[Tensor, Tensor]:
        alike = torch.bmm(metric[:, ::2][:, rows], odd).mul_(scale)
        if protected:
            alike[:, :, : protected // 2] = -torch.inf
        found = alike.max(dim=2)
        return found.values, found.indices

    blocks = row_blocks(evens, odds, metric)
    if len(blocks) == 1:
        best, partner = nearest(blocks[0])
    else:
        best = metric.new_empty(images, evens)
        partner = numbers.new_empty(images, evens)
        for rows in blocks:
            best[:, rows], partner[:, rows] = nearest(rows)
    best /= norm[:, ::2]
    if protected:
        best[:, : (protected + 1) // 2] = -torch.inf
    order = best.argsort(dim=1, descending=True, stable=True)
    stay = order[:, merges:]
    if protected:
        stay = stay.sort(dim=1).values
    left = evens - merges
    merged = partner.new_empty(images, count)
    merged[:, ::2] = partner.add_(left).scatter_(1, stay, numbers[:left].expand(images, -1))
    merged[:, 1::2] = numbers[left : left + odds]
    return order, merged


def _averaged(
    metric: Float32[Tensor, "B N C"],
    order: Int64[Tensor, "B E"],
    merges: int,
    merged: Int64[Tensor, "B N"],
    weight: Float32[Tensor, "B N"],
    numbers: Int64[Tensor, " _"],
) -> Float32[Tensor, "B M C"]:
    """Return the vectors of the new tokens: weighted means of those that were merged."""
    images, count, width = metric.shape
    left = count - merges
    if not products.on_cpu(metric):
        return torch.bmm((merged[:, None] == numbers[:left, None]) * weight[:, None], metric)
    # Only merged tokens are added up; the others are copied.
    stay, gone = order[:, merges:] * 2, order[:, :merges] * 2
    new = metric.new_empty(images, left, width)
    new[:, : stay.shape[1]] = Plan(slot=stay).select(metric)
    torch.mul(metric[:, 1::2], weight[:, 1::2, None], out=new[:, stay.shape[1] :])
    added = Plan(slot=gone).select(metric).mul_(weight.gather(1, gone)[..., None])
    target = merged.gather(1, gone) + torch.arange(images)[:, None] * left
    new.view(-1, width).index_add_(0, target.flatten(), added.flatten(0, 1))
    return new
