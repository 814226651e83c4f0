"""Keep what [CLS] attends to, and merge the rest into a few tokens.  VisionZip, Yang et al. 2024, arXiv 2412.04467."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int64

from foveate.methods import (
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
from foveate.plan import SELECTED, WEIGHTED

if TYPE_CHECKING:
    from torch import Tensor


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Keep the dominant tokens by [CLS] attention, and merge the others into evenly spaced contextual tokens.

    The places of contextual tokens are called targets. Each token that is neither dominant nor a target is merged into
    the target with the most similar key (cosine, keys averaged over heads). A contextual token is its target *plus the
    mean* of the tokens merged into it, as in the authors' code: not a mean over all of them. The method acts before the
    projector, as theirs does.

    Budget: `keep` is the number of dominant and contextual tokens together. `contextual` is how many of them are
    contextual; by default the published proportion, 10 of 64 (54 + 10, 108 + 20, 162 + 30).

    Against the authors' code: theirs keeps [CLS] itself, first and as one of the dominant tokens; here it is left out,
    so that every kept token has a place in the image. Theirs puts contextual tokens last; here all are in raster order,
    each contextual token at the place of its target.

    >>> given = torch.rand(2, 576), torch.randn(2, 576, 8)
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 4), (24, 24), encoder_attention=given[0], encoder_keys=given[1])
    >>> plan = VisionZip(keep=64).plan(tokens)
    >>> plan.size().shape, (plan.size() > 1).sum(dim=1).max() <= 10, plan.size().sum(dim=1).tolist()
    (torch.Size([2, 64]), tensor(True), [576, 576])
    """

    positions: Positions = "pack"
    contextual: int | None = None
    layer: int = -2

    place = "features"
    paper = "arXiv 2412.04467"
    unchanged_if_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contextual is not None and self.contextual < 0:
            raise KeepError(f"contextual {self.contextual} is no number of tokens; write 0 or more, or none")
        if self.keep.tokens is not None:
            self._check_contextual(self.keep.tokens)

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention and mean keys of one encoder layer."""
        return EncoderAttention(layer=self.layer), EncoderKeys(layer=self.layer)

    def count(self, layout: Layout) -> int:
        """Return the number of dominant and contextual tokens."""
        kept = super().count(layout)
        self._check_contextual(kept)
        return kept

    def _check_contextual(self, kept: int) -> None:
        """Check that contextual tokens fit into a keep.

        Raises:
            KeepError: they don't.
        """
        if self.contextual is not None and self.contextual > kept:
            raise KeepError(f"{self.contextual} contextual tokens don't fit into a keep of {kept}; ask for fewer")

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the comparison of all keys with the keys of targets."""
        kept = self.count(one_row(tokens))
        contextual = self._contextual(kept)
        launches = 35 + WEIGHTED if contextual else 5 + SELECTED
        return Effort(2 * tokens * contextual * width + 6 * tokens * width, launches)

    def _contextual(self, kept: int) -> int:
        return (20 * kept + 64) // 128 if self.contextual is None else self.contextual

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the keys, normalised, and their cosines with those of targets; a head is taken to be 64 wide."""
        contextual = self._contextual(self.count(one_row(tokens)))
        return 4 * tokens * (min(width, 64) + contextual) + 40 * tokens if contextual else 14 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep dominant tokens unchanged, and put each other token into the group of its target."""
        attention, keys = (tokens.signals[need].float() for need in self.needs)
        count = attention.shape[1]
        kept = self.count(tokens.layout)
        contextual = self._contextual(kept)
        order = attention.argsort(dim=1, descending=True, stable=True)
        dominant, others = order[:, : kept - contextual], order[:, kept - contextual :].sort(dim=1).values
        if not contextual:
            return Plan(slot=dominant.sort(dim=1).values)

        step = max(1, others.shape[1] // contextual)
        target = others[:, : step * contextual : step]
        slot = torch.cat([dominant, target], dim=1).sort(dim=1).values
        is_dominant, is_target = (_marked(index, count) for index in (dominant, target))
        unit = unit_vectors(keys)
        near = (unit @ Plan(slot=target).select(unit).transpose(1, 2)).argmax(dim=2)
        # First the place that each token is merged into, then the number of that place among the slots.
        home = target.gather(1, near)
        alone = is_dominant | is_target
        home = torch.where(alone, torch.arange(count, device=home.device), home)
        number = _marked(slot, count).cumsum(dim=1) - 1
        group = number.gather(1, home)
        sources = torch.zeros_like(slot).scatter_add(1, group, (~alone).long())
        weight = torch.where(alone, 1.0, 1.0 / sources.clamp(min=1).gather(1, group))
        return Plan(slot=slot, group=group, weight=weight)


def _marked(index: Int64[Tensor, "B K"], count: int) -> Bool[Tensor, "B N"]:
    return torch.zeros(index.shape[0], count, dtype=torch.bool, device=index.device).scatter(1, index, True)
