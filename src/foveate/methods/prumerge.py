"""Keep what stands out by [CLS] attention, with its neighbours.  PruMerge, Shang et al. 2024, arXiv 2403.15388."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

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


@register("prumerge")
@dataclass(frozen=True)
class PruMerge(Method):
    """As many tokens as stand out by [CLS] attention, each with its neighbours, and one token of all that is left.

    A token stands out if its attention is above Q3 + 1.5 (Q3 - Q1), quartiles of the image's own. To each kept token
    the `neighbours` tokens with the most similar keys are added, times their attention: not normalised, kept tokens
    among them, every one as it came. With `extra`, a last token is the sum of all that was not kept, times attention.
    Attention and keys are those of the last layer with its heads side by side, as one wide head; features are those
    that the projector reads.

    Budget: `auto` looks at the image; the paper tells of 5.5 % on average, `foveate bench --spec prumerge:auto` of
    your images. A `keep` of 37 is 36 and the extra one. `ratio` sets the share that stands out and leaves the extra
    token to come on top, as the authors' code counts. Keeping all changes nothing.

    Against the authors' code: theirs counts outliers over the batch, so that an image's tokens depend on the images
    beside it; here each image counts its own, and at least one is kept. Theirs orders by falling attention, the extra
    token last; here all stand in raster order, the extra token at the place of the last token that was not kept. The
    paper has no extra token: `extra=false`.

    >>> given = {"encoder_attention": torch.rand(2, 576) ** 20, "encoder_keys": torch.randn(2, 576, 8)}
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 4), (24, 24), **given)
    >>> plan = PruMerge().plan(tokens)
    >>> fewest, most = PruMerge().bounds(tokens.layout)
    >>> fewest <= plan.slot.shape[1] <= most, PruMerge(keep=37).plan(tokens).slot.shape
    (True, torch.Size([2, 37]))
    """

    # A Keep, as in Method, and read like it: numbers and text will do.
    keep: Any = AUTO
    positions: Positions = "pack"
    ratio: float | None = None
    neighbours: int = 32
    extra: bool = True
    layer: int = -1

    place = "features"
    adaptive = True
    paper = "arXiv 2403.15388"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not (0 < self.ratio <= 1 and self.keep.auto):
            raise KeepError(f"ratio {self.ratio} must be above 0 and up to 1, and stand in place of a keep")
        if self.neighbours < 0:
            raise KeepError(f"neighbours {self.neighbours} is no number of tokens; write 0 or more")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention and keys of one encoder layer, heads side by side."""
        return EncoderAttention(layer=self.layer, heads="full"), EncoderKeys(layer=self.layer, heads="full")

    @property
    def ragged(self) -> bool:
        """Only if the image decides."""
        return self.keep.auto and self.ratio is None

    def count(self, layout: Layout) -> int:
        """`keep`, or the most that may stand out, and the extra token."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """From one outlier to all that may lie above the third quartile, and the extra token."""
        count = layout.content
        if not self.keep.auto:
            kept = int(self.keep.count(count))
            return kept, kept
        fewest, most = self._between(count)
        return min(count, fewest + self.extra), min(count, most + self.extra)

    def _between(self, count: int) -> tuple[int, int]:
        """The fewest and the most tokens that are kept as they are."""
        if self.ratio is None:
            return 1, most_outliers(count)
        kept = _at(self.ratio, count)
        return kept, kept

    def effort(self, tokens: int, width: int) -> Effort:
        """The keys of kept tokens against all keys, and the map from all tokens to kept ones."""
        kept = self.count(one_row(tokens))
        return Effort(2 * kept * tokens * width + 10 * kept * tokens, 40)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Kept tokens, then what each takes in."""
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

        unit = normalize(keys, dim=-1)
        alike = plan.select(unit) @ unit.transpose(1, 2)
        alike = alike.scatter(2, plan.slot[..., None], -torch.inf)
        # Only tokens with the same key can tie here, so which of them is taken matters little: no sort of all.
        near = alike.topk(min(self.neighbours, count - 1), dim=2, sorted=False).indices
        # A weight of exactly zero would say that nothing flows.
        weight = attention.clamp(min=torch.finfo(torch.float32).tiny)[:, None].expand_as(alike)
        mix = torch.zeros_like(alike).scatter(2, near, weight.gather(2, near)).scatter(2, plan.slot[..., None], 1.0)
        if extra:
            mix = torch.where((plan.slot == last)[..., None], weight * ~chosen[:, None], mix)
        return Plan(plan.slot, mix=mix if plan.valid is None else mix * plan.valid[..., None], valid=plan.valid)

    def _chosen(self, attention: Float32[Tensor, "B N"], wanted: int | None) -> Bool[Tensor, "B N"]:
        """The tokens that are kept as they are: the `wanted` most attended, or those that stand out."""
        count = attention.shape[1]
        if wanted is None and self.ratio is not None:
            wanted = _at(self.ratio, count)
        return ranks(attention) < (outliers(attention)[:, None] if wanted is None else wanted)


def ranks(score: Float32[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """The rank of each token, 0 for the highest score; of equal scores the first."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def outliers(score: Float32[Tensor, "B N"]) -> Int64[Tensor, " B"]:
    """How many scores of each image are above Q3 + 1.5 (Q3 - Q1), at least one."""
    low, high = torch.quantile(score, score.new_tensor([0.25, 0.75]), dim=1)
    return (score > (high + 1.5 * (high - low))[:, None]).sum(dim=1).clamp(min=1)


def most_outliers(count: int) -> int:
    """How many of `count` tokens may at most be above their own third quartile, and at least one."""
    return max(1, count - 1 - 3 * (count - 1) // 4)


def _at(ratio: float, count: int) -> int:
    """A share of the tokens, rounded down as the authors' code does, at least one."""
    return max(1, int(count * ratio))
