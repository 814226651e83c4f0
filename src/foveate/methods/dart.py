"""Keep a few pivots and the tokens least similar to them.  DART, Wen et al. 2025, arXiv 2502.11494."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64

from foveate.methods import (
    Behind,
    DecoderKeys,
    Effort,
    FoveateError,
    Method,
    Plan,
    Signal,
    Text,
    VisualTokens,
    register,
)
from foveate.methods.arithmetic.products import unit_vectors
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("dart")
@dataclass(frozen=True)
class DART(Method):
    """Keep the visual tokens with the largest keys as pivots, and for each pivot the tokens least similar to it.

    Visual pivots are the `pivots` visual tokens whose keys in the previous layer have the largest L1 norm over all
    heads. Text pivots are the `text_pivots` text tokens after the image with the largest norms. Visual pivots stay.
    Then each pivot in turn, visual pivots first and larger norms first, takes an equal share of the remaining budget:
    of the tokens not taken yet, those whose hidden states have the lowest cosine with the pivot's. The method reads
    keys and features, no attention; text pivots make it depend on the question. The authors' code acts at `@2` of 32.
    Kept tokens keep their positions.

    Differences from a port of the authors' code (we did not find the original): pivots take tokens in the order above
    (there: in the order of a Python set of numbers). Cosines compare hidden states as they arrive (there: after the
    decoder's last norm, whose weights differ per channel). The remainder of the division goes to the first pivots, so
    that the budget is met exactly. If less text follows the image than `text_pivots`, text before the image is used.

    >>> features = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]]])
    >>> keys = torch.tensor([[[2.0], [0.0], [0.0], [0.0]]])
    >>> tokens = VisualTokens.of(features, (2, 2), decoder_keys=keys)
    >>> DART(keep=2, pivots=1, text_pivots=0).plan(tokens).slot.tolist()
    [[0, 3]]
    """

    pivots: int = 4
    text_pivots: int = 4

    place = "decoder"
    layers = (2,)
    paper = "arXiv 2502.11494"
    unchanged_if_all = True
    query_aware = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 1 or self.text_pivots < 0:
            raise FoveateError(
                f"pivots={self.pivots}, text_pivots={self.text_pivots}: at least one visual pivot is needed"
            )

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the previous layer's keys; for text pivots, also the keys, hidden states and position of text."""
        visual = DecoderKeys("visual", "previous")
        return (visual, DecoderKeys("text", "previous"), Text(), Behind()) if self.text_pivots else (visual,)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: all tokens are compared with the pivots, which choose in turn."""
        pivots = self.pivots + self.text_pivots
        kept = self.keep.count(tokens)
        taking = min(pivots, kept - min(self.pivots, kept))
        launches = 18 + 3 * taking + 9 * bool(self.text_pivots) + SELECTED
        return Effort(2 * (pivots + 1) * tokens * width, launches)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the normalised features, or the sizes of the keys."""
        return 4 * tokens * width + 40 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to keep the visual pivots and the tokens that pivots take."""
        kept = self.count(tokens.layout)
        pivot = largest(tokens.signals[self.needs[0]])[:, : min(self.pivots, kept)]
        states = Plan(slot=pivot).select(tokens.features)
        if self.text_pivots:
            keys, text, behind = (tokens.signals[need] for need in self.needs[1:])
            states = torch.cat([states, Plan(slot=largest(keys, behind)[:, : self.text_pivots]).select(text)], dim=1)
        images, count = tokens.features.shape[:2]
        taken = torch.zeros(images, count, dtype=torch.bool, device=pivot.device).scatter(1, pivot, True)
        share, more = divmod(kept - pivot.shape[1], states.shape[1])
        shares = [share + (i < more) for i in range(states.shape[1])]
        return Plan.keeping(take_least_like(tokens.features, states, taken, shares), kept)


def largest(keys: Float[Tensor, "B N D_key"], first: Bool[Tensor, "B N"] | None = None) -> Int64[Tensor, "B N"]:
    """Sort tokens by the L1 norm of their keys, largest first, those in `first` before others: `(B, N)` int64."""
    norm = keys.float().abs().sum(dim=2)
    if first is not None:
        norm = norm + first * (norm.amax(dim=1, keepdim=True) + 1)
    return norm.argsort(dim=1, descending=True, stable=True)


def take_least_like(
    features: Float[Tensor, "B N D"],
    pivots: Float[Tensor, "B P D"],
    taken: Bool[Tensor, "B N"],
    shares: Sequence[int],
) -> Bool[Tensor, "B N"]:
    """Let each pivot in turn take the `shares[p]` free tokens with the lowest cosine to it: `(B, N)` bool."""
    like = unit_vectors(pivots.float()) @ unit_vectors(features.float()).transpose(1, 2)
    for cosine, share in zip(like.unbind(dim=1), shares, strict=True):
        if share:
            order = cosine.masked_fill(taken, torch.inf).argsort(dim=1, stable=True)
            taken = taken.scatter(1, order[:, :share], True)
    return taken
