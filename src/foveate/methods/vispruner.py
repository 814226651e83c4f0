"""Part by [CLS] attention, part by being unlike each other.  VisPruner, Zhang et al. 2025, arXiv 2412.01818v2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods import (
    Effort,
    EncoderAttention,
    KeepError,
    Method,
    Plan,
    Positions,
    Signal,
    VisualTokens,
    one_row,
    register,
)


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Important tokens by [CLS] attention; of the others, those that are left when duplicates have been taken away.

    Duplicates go in rounds. What is left is dealt out in turn, starting with the most attended, to two hands; the
    `step` tokens of the first hand that are most like some token of the second (cosine of features) are dropped. What
    stays of the first, most alike first, then the second, goes into the next round. Acts on features before the
    projector, as the authors' code does.

    Budget: `keep` is important and diverse tokens together; `important` is the share of the first, rounded down.
    (This paper is the second version of FasterVLM's, which is `cls`; `important=1.0` is `cls` before the projector.)

    Against the authors' code: no difference where it runs; it fails on an odd number of remaining tokens, and here the
    first hand then holds one more.

    Cost: one round follows the other, (N - keep) / `step` of them, each over pairs that are left. On a processor, where
    there are many tokens, a round looks at short lists of likest tokens instead of at all pairs. On a GPU a round is
    some ten launches, and on a fast one they may take longer than what they save (`foveate cost --spec vispruner:64`
    tells); raise `step` then.

    >>> given = torch.rand(2, 576)
    >>> tokens = VisualTokens.of(torch.randn(2, 576, 8), (24, 24), encoder_attention=given)
    >>> VisPruner(keep=64).plan(tokens).slot.shape
    torch.Size([2, 64])
    """

    positions: Positions = "pack"
    important: float = 0.5
    step: int = 8
    layer: int = -2

    place = "features"
    paper = "arXiv 2412.01818"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important <= 1:
            raise KeepError(f"important {self.important} is no share; write a number from 0 to 1")
        if self.step < 1:
            raise KeepError(f"step {self.step} would never come to an end; write at least 1")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the matrix of cosines, and rounds over a quarter of what is left of it."""
        kept = self.count(one_row(tokens))
        if int(kept * self.important) == kept:
            # The most important tokens alone: nothing is compared.
            return super().effort(tokens, width)
        rounds = -(-(tokens - kept) // self.step)
        return Effort(2 * tokens**2 * width + rounds * (tokens**2 + tokens * kept + kept**2) / 12, 10 * rounds + 12)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Top-k, then rounds over the others."""
        kept = self.count(tokens.layout)
        important = int(kept * self.important)
        order = tokens.signals[self.needs[0]].argsort(dim=1, descending=True, stable=True)
        diverse = self._diverse(tokens, order[:, important:], kept - important)
        return Plan(slot=torch.cat([order[:, :important], diverse], dim=1).sort(dim=1).values)

    def _diverse(self, tokens: VisualTokens, left: Int64[Tensor, "B R"], wanted: int) -> Int64[Tensor, "B K"]:
        if not wanted or left.shape[1] == wanted:
            return left[:, :wanted]
        unit = normalize(tokens.features.float(), dim=-1)
        alike, names = unit @ unit.transpose(1, 2), left
        left = torch.arange(left.shape[1], device=left.device).expand_as(left)
        alike = _among(alike, names)
        look = _look(alike)
        while left.shape[1] > wanted:
            if 2 * left.shape[1] <= alike.shape[1]:
                alike, names = _among(alike, left), names.gather(1, left)
                left = torch.arange(left.shape[1], device=left.device).expand_as(left)
                look = _look(alike)
            first, second = left[:, ::2], left[:, 1::2]
            fewer = min(self.step, left.shape[1] - wanted, first.shape[1])
            order = look(first, second).argsort(dim=1, descending=True, stable=True)[:, fewer:]
            left = torch.cat([first.gather(1, order), second], dim=1)
        return names.gather(1, left)


Look = Callable[[Tensor, Tensor], Tensor]
_MANY = 512
"""Tokens above which a processor is faster with lists."""


def _look(alike: Float[Tensor, "B R R"]) -> Look:
    # On a GPU launches are what takes time, so one large look is best.
    return likest_by_list(alike) if alike.device.type == "cpu" and alike.shape[1] > _MANY else partial(likest, alike)


def _among(alike: Float[Tensor, "B N N"], left: Int64[Tensor, "B R"]) -> Float[Tensor, "B R R"]:
    rows = alike.gather(1, left[..., None].expand(-1, -1, alike.shape[2]))
    return rows.gather(2, left[:, None].expand(-1, left.shape[1], -1))


def likest(
    alike: Float[Tensor, "B R R"], first: Int64[Tensor, "B F"], second: Int64[Tensor, "B S"]
) -> Float[Tensor, "B F"]:
    """How much each token of the first hand is like the token of the second that it is most like."""
    pairs = (first[..., None] * alike.shape[1] + second[:, None]).flatten(1)
    return alike.flatten(1).gather(1, pairs).view(*first.shape, -1).amax(dim=2)


def likest_by_list(alike: Float[Tensor, "B R R"], length: int = 16) -> Look:
    """The same, for one round after another: from a list of the likest of each token.

    A token's answer is the first of its list that is in the second hand. One none of whose list is there is looked up
    in its whole row.
    """
    values, tokens = alike.topk(min(length, alike.shape[1]), dim=2)
    image = torch.arange(len(alike))[:, None]

    def look(first: Int64[Tensor, "B F"], second: Int64[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        held = torch.zeros(alike.shape[:2], dtype=torch.bool).scatter_(1, second, True)
        hit = held[image[..., None], tokens[image, first]]
        some, place = hit.max(dim=2)
        found = values[image, first, place]
        lost, row = (~some).nonzero(as_tuple=True)
        if len(lost):
            found[lost, row] = alike[lost, first[lost, row]].masked_fill(~held[lost], -torch.inf).amax(dim=1)
        return found

    return look
