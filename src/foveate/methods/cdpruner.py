"""Keep tokens that are diverse and matter to the question.  CDPruner, Zhang et al. 2025, arXiv 2506.10967."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods import Effort, Method, Plan, Positions, Signal, Text, VisualTokens, one_row, register

_EXHAUSTED = 1e-5
"""Share of a token's length outside the span of the picks below which float32 can't tell it from nothing."""


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """The greedy likeliest subset of a determinantal point process whose kernel is diag(r) S diag(r).

    S holds the cosines between tokens, r how relevant each token is to the question: its mean cosine to the tokens of
    the prompt's text, scaled to go from 0 to 1 inside each image. Reads the features and the text, so a compressed
    image serves one question. Keeps exactly the budget, in raster order.

    `relevance` says what counts as relevant: "unlike" the text, as in the authors' code, which negates the cosine, or
    "like" it, as the paper's formula reads.

    Departures from the authors' code: they compare tokens with the text in CLIP's joint space, by CLIP's text tower,
    which models don't carry along; here both are compared at the method's place, at `@input` as the model's own
    embeddings, and all of the prompt's text counts. They scale r over the whole batch, here each image has its own
    scale. What the picks span already is no use to the determinant: of such tokens, the most relevant go first, where
    rounding decides there.

    Cost: one N x N matrix of cosines, then one step per kept token, for all images at once; step i is a product of an
    i x N matrix with a vector. With thousands of tokens that is about a hundredth of the prefill that it saves on a
    CPU: `docs/speed.md`.

    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    >>> tokens = VisualTokens.of(features, (2, 2), text=torch.tensor([[[1.0, 0.5]]]))
    >>> CDPruner(keep=2).plan(tokens).slot.tolist()
    [[0, 2]]
    """

    positions: Positions = "pack"
    relevance: Literal["unlike", "like"] = "unlike"

    paper = "arXiv 2506.10967"
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The prompt's text."""
        return (Text(),)

    def plan(self, tokens: VisualTokens) -> Plan:
        """The likeliest subset."""
        likeness = mean_cosine(tokens.features, tokens.signals[self.needs[0]])
        relevance = from_zero_to_one(likeness if self.relevance == "like" else -likeness)
        picks = likeliest_subset(tokens.features, relevance, self.count(tokens.layout))
        return Plan(slot=picks.sort(dim=1).values)

    def effort(self, tokens: int, width: int) -> Effort:
        """The matrix of cosines, then a step per kept token over all steps before it."""
        kept = self.count(one_row(tokens))
        return Effort(2 * tokens**2 * width + kept**2 * tokens, 12 * kept + 20)


def mean_cosine(features: Float[Tensor, "B N D"], text: Float[Tensor, "B T D"]) -> Float32[Tensor, "B N"]:
    """The mean cosine of each token to the tokens of a text: `(B, N)` float32."""
    # The mean of cosines is one product with the mean direction.
    direction = normalize(text.float(), dim=-1).mean(dim=1)
    return torch.bmm(normalize(features.float(), dim=-1), direction[..., None])[..., 0]


def from_zero_to_one(values: Float32[Tensor, "B N"]) -> Float32[Tensor, "B N"]:
    """Values scaled to go from (nearly) 0 to 1 inside each image; all 1 where they are all equal."""
    low, high = values.aminmax(dim=1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (values - low + 1e-6) / span, 1.0)


def likeliest_subset(
    features: Float[Tensor, "B N D"], relevance: Float32[Tensor, "B N"], kept: int
) -> Int64[Tensor, "B M"]:
    """Greedy picks for the largest determinant of diag(r) S diag(r), in the order of picking: `(B, kept)` int64.

    The fast greedy algorithm of Chen et al. 2018, arXiv 1709.05135: a Cholesky decomposition whose pivots are the
    picks. It runs on S alone. What r does to a pivot is known without it: token n gains r_n^2 times the share of its
    length that is outside the span of the picks.

    Args:
        features: `(B, N, D)`, any float dtype; S is their cosines, in float32.
        relevance: `(B, N)` float32, r, not negative.
        kept: how many picks.
    """
    unit = normalize(features.float(), dim=-1)
    cosine = torch.bmm(unit, unit.transpose(1, 2))
    images, count, _ = cosine.shape
    weight = relevance.square()
    outside = torch.ones_like(weight)
    # Tokens inside the span of the picks come after all others.
    behind = weight - weight.amax(dim=1, keepdim=True) - 1
    factor = cosine.new_empty(images, kept, count)
    picks: list[Tensor] = []
    for step in range(kept):
        pick = torch.where(outside > _EXHAUSTED, weight * outside, behind).argmax(dim=1, keepdim=True)
        picks.append(pick)
        pivot = outside.gather(1, pick)
        row = cosine.gather(1, pick[..., None].expand(-1, -1, count))
        before = factor[:, :step]
        row = torch.baddbmm(row, before.gather(2, pick[:, None].expand(-1, step, -1)).transpose(1, 2), before, alpha=-1)
        row = row[:, 0] * torch.where(pivot > _EXHAUSTED, pivot.clamp(min=_EXHAUSTED).rsqrt(), 0.0)
        factor[:, step] = row
        outside = (outside - row.square()).scatter(1, pick, -torch.inf)
        behind = behind.scatter(1, pick, -torch.inf)
    return torch.cat(picks, dim=1)
