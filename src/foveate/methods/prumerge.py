"""Keep what stands out by [CLS] attention, and add its neighbours.  PruMerge, Shang et al. 2024, arXiv 2403.15388."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float32, Int64

from foveate.methods import (
    AUTO,
    Effort,
    EncoderAttention,
    EncoderKeys,
    KeepError,
    Layout,
    Method,
    Plan,
    Positions,
    Signal,
    VisualTokens,
    one_row,
    register,
)
from foveate.methods.arithmetic.products import unit_vectors
from foveate.plan import MIXED

if TYPE_CHECKING:
    from torch import Tensor


@register("prumerge")
@dataclass(frozen=True)
class PruMerge(Method):
    """Keep the outliers of [CLS] attention, add similar tokens to each, and sum all other tokens in one extra token.

    A token is an outlier if its attention is above Q3 + 1.5 (Q3 - Q1), with the quartiles of its image. To each kept
    token the method adds the `neighbours` tokens with the most similar keys, each multiplied by its attention. The
    weights are not normalised. Neighbours may be kept tokens, and are added with their original features. With
    `extra`, the extra token is the sum of all tokens that were not kept, each multiplied by its attention. Attention
    and keys are those of the last layer with its heads side by side, as one wide head. Features are those that the
    projector reads.

    Budget: `auto` looks at the image; the paper reports 5.5 % on average, and `foveate bench --spec prumerge:auto`
    measures it on your images. A `keep` of 37 means 36 tokens and the extra one. `ratio` sets the share of tokens
    that are kept, and the extra token is added to them, as the authors' code counts. Keeping all tokens changes
    nothing.

    Against the authors' code: theirs counts outliers over the batch, so the tokens of an image depend on the other
    images; here the outliers of each image are counted separately, and at least one is kept. Theirs orders tokens by
    falling attention, with the extra token last; here all are in raster order, with the extra token at the place of
    the last token that was not kept. The paper has no extra token; `extra=false` leaves it out.

    >>> given = {"encoder_attention": torch.rand(2, 576) ** 20, "encoder_keys": torch.randn(2, 576, 8)}
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 4), (24, 24), **given)
    >>> plan = PruMerge().plan(tokens)
    >>> fewest, most = PruMerge().bounds(tokens.layout)
    >>> fewest <= plan.slot.shape[1] <= most, PruMerge(keep=37).plan(tokens).slot.shape
    (True, torch.Size([2, 37]))
    """

    # A Keep, read as in Method: numbers and text are accepted too.
    keep: Any = AUTO
    positions: Positions = "pack"
    ratio: float | None = None
    neighbours: int = 32
    extra: bool = True
    layer: int = -1

    place = "features"
    adaptive = True
    paper = "arXiv 2403.15388"
    unchanged_if_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not (0 < self.ratio <= 1 and self.keep.auto):
            raise KeepError(f"ratio {self.ratio} must be above 0 and up to 1, and stand in place of a keep")
        if self.neighbours < 0:
            raise KeepError(f"neighbours {self.neighbours} is no number of tokens; write 0 or more")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention and keys of one encoder layer, with heads side by side."""
        return EncoderAttention(layer=self.layer, heads="full"), EncoderKeys(layer=self.layer, heads="full")

    @property
    def ragged(self) -> bool:
        """Whether counts differ between images: only if the image decides."""
        return self.keep.auto and self.ratio is None

    def count(self, layout: Layout) -> int:
        """Return `keep`, or the largest possible number of outliers, and the extra token."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the counts for one outlier and for the largest possible number of them, with the extra token."""
        count = layout.content
        if not self.keep.auto:
            kept = int(self.keep.count(count))
            return kept, kept
        fewest, most = self._between(count)
        return min(count, fewest + self.extra), min(count, most + self.extra)

    def _between(self, count: int) -> tuple[int, int]:
        """Return the fewest and the most kept tokens, without the extra one."""
        if self.ratio is None:
            return 1, most_outliers(count)
        kept = _at(self.ratio, count)
        return kept, kept

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the comparison of kept keys with all keys, and the map from all tokens to kept ones."""
        kept = self.count(one_row(tokens))
        launches = self._choosing + 12 * self.extra + 21 + MIXED
        return Effort(2 * kept * tokens * width + 10 * kept * tokens, launches, 2 * self.ragged)

    @property
    def _choosing(self) -> int:
        """How many operations mark the kept tokens."""
        return 33 if self.ragged else 2

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the normalised keys, and the map from all tokens to kept ones."""
        kept = self.count(one_row(tokens))
        return 4 * width * (tokens + kept) + 4 * kept * tokens + 12 * kept * self.neighbours + 30 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Choose the kept tokens, then the tokens that are added to each."""
        attention, keys = (tokens.signals[need].float() for need in self.needs)
        images, count = attention.shape
        place = torch.arange(count, device=attention.device)
        kept = None if self.keep.auto else self.keep.count(count)
        if kept == count:
            return Plan(slot=place.expand(images, -1))
        extra = self.extra and kept != 1
        chosen = self._chosen(attention, None if kept is None else kept - extra)
        last = torch.where(chosen, -1, place).amax(dim=1, keepdim=True)
        known = self.count(tokens.layout) if not self.ragged else None
        plan = Plan.keeping(chosen | (place == last) if extra else chosen, known)

        unit = unit_vectors(keys)
        alike = plan.select(unit) @ unit.transpose(1, 2)
        alike.scatter_(2, plan.slot[..., None], -torch.inf)
        # Only tokens with the same key can tie, so it matters little which is taken, and a full sort isn't needed.
        near = alike.topk(min(self.neighbours, count - 1), dim=2, sorted=False).indices
        # A weight of exactly zero would mean that the token is no part of the sum.
        weight = attention.clamp(min=torch.finfo(torch.float32).tiny)
        added = weight.gather(1, near.flatten(1)).view_as(near)
        mix = alike.zero_().scatter_(2, near, added).scatter_(2, plan.slot[..., None], 1.0)
        if extra:
            # An image that keeps all its tokens has no extra one.
            here = plan.slot == last
            row, image = here.byte().argmax(dim=1), torch.arange(images, device=here.device)
            mix[image, row] = torch.where(here.any(dim=1, keepdim=True), weight * ~chosen, mix[image, row])
        if plan.valid is not None:
            mix.mul_(plan.valid[..., None])
        return Plan(plan.slot, mix=mix, valid=plan.valid)

    def _chosen(self, attention: Float32[Tensor, "B N"], wanted: int | None) -> Bool[Tensor, "B N"]:
        """Mark the kept tokens, without the extra one: the `wanted` most attended, or the outliers."""
        count = attention.shape[1]
        if wanted is None and self.ratio is not None:
            wanted = _at(self.ratio, count)
        return ranks(attention) < (outliers(attention)[:, None] if wanted is None else wanted)


def ranks(score: Float32[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """Return the rank of each token: 0 for the highest score; of equal scores, the first token ranks higher."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def outliers(score: Float32[Tensor, "B N"]) -> Int64[Tensor, " B"]:
    """Count the scores of each image that are above Q3 + 1.5 (Q3 - Q1); at least one."""
    low, high = torch.quantile(score, torch.tensor([0.25, 0.75]).to(score.device, non_blocking=True), dim=1)
    return (score > (high + 1.5 * (high - low))[:, None]).sum(dim=1).clamp(min=1)


def most_outliers(count: int) -> int:
    """Return the most of `count` tokens that can lie above their third quartile; at least one."""
    return max(1, count - 1 - 3 * (count - 1) // 4)


def _at(ratio: float, count: int) -> int:
    """Return a share of the tokens, rounded down as in the authors' code; at least one."""
    return max(1, int(count * ratio))
