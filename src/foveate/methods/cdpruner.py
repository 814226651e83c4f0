"""Keep tokens that are diverse and relevant to the question.  CDPruner, Zhang et al. 2025, arXiv 2506.10967."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Float32, Int64

from foveate.methods import Effort, Method, Plan, Positions, Signal, Text, VisualTokens, one_row, register
from foveate.methods.arithmetic.products import WHOLE, cosines, pairs_bytes, unit_vectors
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor

_EXHAUSTED = 1e-5
"""Below this share of a token's length outside the span of the picks, float32 rounding dominates."""


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """Keep the greedy likeliest subset of a determinantal point process with the kernel diag(r) S diag(r).

    S holds the cosines between tokens. r is the relevance of each token to the question: its mean cosine to the tokens
    of the prompt's text, scaled to 0 to 1 inside each image. The method reads the features and the text, so a
    compressed image serves one question. It keeps exactly the budget, in raster order.

    `relevance` chooses which tokens are relevant: those "unlike" the text, as in the authors' code, which negates the
    cosine, or those "like" the text, as in the paper's formula.

    Differences from the authors' code: they compare tokens with the text in CLIP's joint space and need CLIP's text
    tower, which models don't include. Here both are compared at the method's place (at `@input`, as the model's
    embeddings), and all of the prompt's text counts. They scale r over the whole batch; here each image is scaled
    alone. Tokens that lie in the span of the picks add nothing to the determinant: here the most relevant of them are
    taken first; there rounding decides.

    Cost: the cosines of all pairs (above 4,096 tokens: only those to a pick), then one step per kept token, for all
    images at once. Step i multiplies an i x N matrix by a vector. With thousands of tokens the method takes about a
    hundredth of the prefill that it saves on a CPU: `docs/speed.md`.

    >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    >>> tokens = VisualTokens.of(features, (2, 2), text=torch.tensor([[[1.0, 0.5]]]))
    >>> CDPruner(keep=2).plan(tokens).slot.tolist()
    [[0, 2]]
    """

    positions: Positions = "pack"
    relevance: Literal["unlike", "like"] = "unlike"

    paper = "arXiv 2506.10967"
    unchanged_if_all = True
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the prompt's text."""
        return (Text(),)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cosines, and the factor of all kept tokens."""
        kept = self.count(one_row(tokens))
        matrix = 4 * tokens**2 if tokens <= WHOLE else 0
        factor = 4 * tokens * (width + kept) + matrix + 40 * tokens
        return max(factor, pairs_bytes(tokens, width) if matrix else 0)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to keep the likeliest subset, in raster order."""
        likeness = mean_cosine(tokens.features, tokens.signals[self.needs[0]])
        relevance = from_zero_to_one(likeness if self.relevance == "like" else -likeness)
        picks = likeliest_subset(tokens.features, relevance, self.count(tokens.layout))
        return Plan(slot=picks.sort(dim=1).values)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: the matrix of cosines, then one step per kept token over all earlier steps."""
        kept = self.count(one_row(tokens))
        return Effort(2 * tokens**2 * width + kept**2 * tokens, 9 * kept + 45 + SELECTED)


def mean_cosine(features: Float[Tensor, "B N D"], text: Float[Tensor, "B T D"]) -> Float32[Tensor, "B N"]:
    """Return the mean cosine of each token to the tokens of a text: `(B, N)` float32."""
    # The mean of the cosines equals one product with the mean direction.
    direction = unit_vectors(text.float()).mean(dim=1)
    return torch.bmm(unit_vectors(features.float()), direction[..., None])[..., 0]


def from_zero_to_one(values: Float32[Tensor, "B N"]) -> Float32[Tensor, "B N"]:
    """Scale values to (nearly) 0 to 1 inside each image; return 1 for all if they are equal."""
    low, high = values.aminmax(dim=1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (values - low + 1e-6) / span, 1.0)


def likeliest_subset(
    features: Float[Tensor, "B N D"], relevance: Float32[Tensor, "B N"], kept: int
) -> Int64[Tensor, "B M"]:
    """Pick tokens greedily for the largest determinant of diag(r) S diag(r), in pick order: `(B, kept)` int64.

    This is the fast greedy algorithm of Chen et al. 2018, arXiv 1709.05135: a Cholesky decomposition whose pivots are
    the picks. It decomposes S alone and applies r to each gain: token n gains r_n^2 times the share of its length that
    is outside the span of the picks.

    Args:
        features: `(B, N, D)`, any float dtype; S holds their cosines, in float32.
        relevance: `(B, N)` float32, r, not negative.
        kept: the number of picks.
    """
    cosine = cosines(features.detach())
    if cosine.matrix is not None:
        # A pick takes more of itself than there is, so it gains nothing from then on.
        cosine.matrix.diagonal(dim1=1, dim2=2).fill_(2.0)
    images, count = relevance.shape
    weight = relevance.detach().square()
    # Row 0 is the share of each token outside the span of the picks, 0 if there is none left; then the factor's rows.
    held = weight.new_empty(images, kept + 1, count)
    outside = held[:, 0].fill_(1.0)
    gain = weight.clone()
    gains: list[Tensor] = []
    picks: list[Tensor] = []
    for step in range(kept):
        best, pick = gain.max(dim=1, keepdim=True)
        gains.append(best)
        picks.append(pick)
        here = held[:, : step + 1].gather(2, pick[:, None].expand(-1, step + 1, -1))
        row = torch.baddbmm(
            cosine.rows(pick[:, 0])[:, None], here[:, 1:].transpose(1, 2), held[:, 1 : step + 1], alpha=-1
        )
        if torch.compiler.is_compiling():
            # It takes no part of a tensor as `out`.
            row = row[:, 0] * here[:, 0].rsqrt()
            held[:, step + 1] = row
        else:
            row = torch.mul(row[:, 0], here[:, 0].rsqrt(), out=held[:, step + 1])
        torch.nn.functional.threshold(outside.addcmul_(row, row, value=-1), _EXHAUSTED, 0.0, inplace=True)
        if cosine.matrix is None:
            outside.scatter_(1, pick, 0.0)
        torch.mul(weight, outside, out=gain)
    return _completed(torch.cat(picks, dim=1), torch.cat(gains, dim=1), weight)


def _completed(
    picks: Int64[Tensor, "B M"], gains: Float32[Tensor, "B M"], weight: Float32[Tensor, "B N"]
) -> Int64[Tensor, "B M"]:
    """Replace the picks from the first without a gain on: take the most relevant of the tokens that weren't picked."""
    real = (gains > 0).cumprod(dim=1).bool()
    infinite = gains.new_full(gains.shape, torch.inf)
    rest = weight.scatter_reduce(1, picks, infinite.masked_fill_(real, -torch.inf), "amin")
    order = rest.argsort(dim=1, descending=True, stable=True)
    begin = real.sum(dim=1, keepdim=True)
    numbers = (torch.arange(picks.shape[1], device=picks.device) - begin).clamp_(min=0)
    return torch.where(real, picks, order.gather(1, numbers))
