"""Keep tokens by [CLS] attention, and diverse other tokens.  VisPruner, Zhang et al. 2025, arXiv 2412.01818v2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64

from foveate.devices import on_cpu
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
from foveate.methods.arithmetic.products import BLOCK_BYTES, WHOLE, Pairs, row_blocks, unit_vectors
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Keep the important tokens by [CLS] attention; drop duplicates of the others until the budget is met.

    Duplicates are dropped in rounds. A round splits the remaining tokens alternately into two halves, starting with the
    most attended token. It drops the `step` tokens of the first half that are most similar to some token of the second
    (cosine of features). The rest of the first half, most similar first, then the second half, enter the next round.
    The method acts on features before the projector, as the authors' code does.

    Budget: `keep` is the number of important and diverse tokens together; `important` is the share of important ones,
    rounded down. (This paper is the second version of FasterVLM's, which is `cls`; `important=1.0` is `cls` before the
    projector.)

    Against the authors' code: no difference where theirs runs. Theirs fails on an odd number of remaining tokens; here
    the first half then has one token more.

    Cost: (N - keep) / `step` rounds, one after another, each over the remaining pairs. On a CPU with many tokens, a
    round searches short lists of the most similar tokens instead of all pairs. On a GPU a round takes about ten kernel
    launches. On a fast GPU these may take longer than the time they save, which `foveate cost --spec vispruner:64`
    shows; raise `step` then.

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
    unchanged_if_all = True

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
        """Estimate the matrix of cosines, and rounds that each read a quarter of what remains of it."""
        kept = self.count(one_row(tokens))
        if int(kept * self.important) == kept:
            # Only important tokens are kept: nothing is compared.
            return super().effort(tokens, width)
        rounds = -(-(tokens - kept) // self.step)
        return Effort(
            2 * tokens**2 * width + rounds * (tokens**2 + tokens * kept + kept**2) / 12, 6 * rounds + 33 + SELECTED
        )

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cosines of all pairs but those of important tokens, and of half of these pairs once more."""
        kept = self.count(one_row(tokens))
        important = int(kept * self.important)
        count = tokens - important
        if important == kept or tokens == kept:
            return 14 * tokens
        whole = count
        while whole > WHOLE:
            whole = -(-whole // 2)
        pairs = 4 * count * width + 7 * whole**2 + 400 * whole
        return pairs if whole == count else max(pairs, 8 * count * width + 2 * BLOCK_BYTES + 500 * count)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the top-k, then drop duplicates of the others in rounds."""
        kept = self.count(tokens.layout)
        important = int(kept * self.important)
        order = tokens.signals[self.needs[0]].argsort(dim=1, descending=True, stable=True)
        diverse = self._diverse(tokens, order[:, important:], kept - important)
        return Plan(slot=torch.cat([order[:, :important], diverse], dim=1).sort(dim=1).values)

    def _diverse(self, tokens: VisualTokens, left: Int64[Tensor, "B R"], wanted: int) -> Int64[Tensor, "B K"]:
        if not wanted or left.shape[1] == wanted:
            return left[:, :wanted]
        unit = unit_vectors(Plan(slot=left).select(tokens.features).float())
        names, alike = left, Pairs(unit)
        left = torch.arange(left.shape[1], device=left.device).expand_as(left)
        look = _look(alike)
        while left.shape[1] > wanted:
            if 2 * left.shape[1] <= alike.count:
                alike, names = alike.among(left), names.gather(1, left)
                left = torch.arange(left.shape[1], device=left.device).expand_as(left)
                look = _look(alike)
            first, second = left[:, ::2], left[:, 1::2]
            fewer = min(self.step, left.shape[1] - wanted, first.shape[1])
            order = look(first, second).argsort(dim=1, descending=True, stable=True)[:, fewer:]
            left = torch.cat([first.gather(1, order), second], dim=1)
        return names.gather(1, left)


Look = Callable[["Tensor", "Tensor"], "Tensor"]
_MANY = 512
"""Number of tokens above which lists are faster on a CPU."""


def _look(alike: Pairs) -> Look:
    if alike.on_cpu and alike.count > _MANY:
        return likest_by_list(alike)
    # On a GPU kernel launches take most of the time, so one large lookup is best.
    return alike.highest if alike.matrix is None else partial(likest, alike.matrix)


def likest(
    alike: Float[Tensor, "B R R"], first: Int64[Tensor, "B F"], second: Int64[Tensor, "B S"]
) -> Float[Tensor, "B F"]:
    """Return the similarity of each token of the first half to the most similar token of the second."""
    if not on_cpu(alike):
        # One operation instead of three.
        images = torch.arange(len(alike), device=alike.device)[:, None, None]
        return alike[images, first[..., None], second[:, None]].amax(dim=2)
    pairs = (first[..., None] * alike.shape[1] + second[:, None]).flatten(1)
    return alike.flatten(1).gather(1, pairs).view(*first.shape, -1).amax(dim=2)


def likest_by_list(alike: Float[Tensor, "B R R"] | Pairs, length: int = 16) -> Look:
    """Return a function that computes the same as `likest`, from a list of the most similar tokens of each token.

    The function serves all rounds. For each token it takes the first of its list that is in the second half. If none of
    the list is there, it searches the whole row of the token.
    """
    pairs = Pairs.of(alike) if isinstance(alike, torch.Tensor) else alike
    values, tokens = pairs.topk(min(length, pairs.count))
    images = len(values)
    image = torch.arange(images)[:, None]

    def look(first: Int64[Tensor, "B F"], second: Int64[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        held = torch.zeros(images, pairs.count, dtype=torch.bool).scatter_(1, second, True)
        hit = held[image[..., None], tokens[image, first]]
        some, place = hit.max(dim=2)
        found = values[image, first, place]
        lost, row = (~some).nonzero(as_tuple=True)
        for each in row_blocks(len(lost), pairs.count, held):
            found[lost[each], row[each]] = (
                pairs.rows_of(lost[each], first[lost[each], row[each]]).masked_fill_(~held[lost[each]], -torch.inf)
            ).amax(dim=1)
        return found

    return look
