"""Thresholds on what a token gets and where it stands.  ATP-LLaVA, Ye et al. 2024, arXiv 2412.00447 (our reading)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from foveate.errors import FoveateError
from foveate.methods.base import AUTO, Method
from foveate.plan import Plan
from foveate.spec import register
from foveate.tokens import DecoderAttention, DecoderLogits, Keep, Layout, Signal, VisualTokens


@register("atp")
@dataclass(frozen=True)
class ATP(Method):
    """A token stays if it is attended to more than one threshold, or stands on a grid sparser than another.

    Its redundancy score is the mean of two, each stretched to 0 to 1 over the tokens of the image: the mean logit that
    the image's tokens gave it in the layer before, and the mean attention that text gave it there. Its spatial score is
    1 - `sparsity` / s^2 for the largest s of 4, 3 and 2 such that it stands on the grid of every s-th row and column,
    else 0. It stays if the first is above `theta_r` or the second above `theta_s`: a lower `theta_s` lets denser grids
    through, 1.0 none. Reads the question and looks at the content, so images differ in how many tokens remain (at least
    one); a `keep` of its own takes that many by the larger of the two margins instead. The authors act behind layers 4,
    14 and 24 of 32, and keep position ids.

    This is the rule at inference. In the paper a trained module predicts both thresholds for each image and prompt;
    here they are options, 0.5 unless told otherwise. Neither its text nor its code was seen (there is no code), only
    others' accounts of its equations: the stretching, the grids and which tokens a mean is over are our choice.

    >>> tokens = VisualTokens.of(
    ...     torch.zeros(1, 4, 2),
    ...     (2, 2),
    ...     decoder_logits=torch.tensor([[0.0, 4.0, 2.0, 1.0]]),
    ...     decoder_attention=torch.tensor([[[0.1, 0.1, 0.3, 0.1]]]),
    ... )
    >>> ATP(theta_s=1.0).plan(tokens).slot.tolist()
    [[2]]
    >>> ATP(theta_s=0.0).plan(tokens).slot.tolist()
    [[2, 3]]
    """

    keep: Keep = AUTO
    theta_r: float = 0.5
    theta_s: float = 0.5
    sparsity: float = 3.0

    place = "decoder"
    layers = (4, 14, 24)
    paper = "arXiv 2412.00447"
    query_aware = True
    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("theta_r", "theta_s"):
            if not 0 <= getattr(self, name) <= 1:
                raise FoveateError(f"{name}={getattr(self, name)}: a threshold is from 0 to 1")
        if self.sparsity < 0:
            raise FoveateError(f"sparsity={self.sparsity}: write 0 or more; the paper has 3.0")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Logits from the image and attention from text, of the layer before."""
        return (DecoderLogits(layer="previous"), DecoderAttention(rows="text", layer="previous"))

    @property
    def ragged(self) -> bool:
        """Only if thresholds decide."""
        return self.keep.auto

    def count(self, layout: Layout) -> int:
        """`keep`, or all: thresholds may let everything through."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """From one token to all."""
        if self.keep.auto:
            return 1, layout.content
        count = self.keep.count(layout.content)
        return count, count

    def plan(self, tokens: VisualTokens) -> Plan:
        """What is above a threshold, and the best token in any case."""
        given = (tokens.signals[need].float() for need in self.needs)
        logits, attention = next(given), next(given).mean(dim=1)
        redundancy = (_stretched(logits) + _stretched(attention)) / 2
        margin = torch.maximum(redundancy - self.theta_r, self.spatial(tokens) - self.theta_s)
        order = margin.argsort(dim=1, descending=True, stable=True)
        if not self.keep.auto:
            return Plan(slot=order[:, : self.count(tokens.layout)].sort(dim=1).values)
        return Plan.keeping((margin > 0).scatter(1, order[:, :1], True))

    def spatial(self, tokens: VisualTokens) -> Float32[Tensor, "#B N"]:
        """The spatial score, by where a token stands in the whole image: `(B, N)` or `(1, N)`."""
        layout = tokens.layout if tokens.origin is None else tokens.origin.layout
        parts: list[Tensor] = []
        for segment in layout.segments:
            score = torch.zeros(segment.h, segment.w)
            for step in (2, 3, 4):
                # A coarser grid comes later and scores higher.
                score[step // 2 :: step, step // 2 :: step] = 1 - self.sparsity / step**2
            parts.append(score.flatten().repeat(segment.t))
        score = torch.cat(parts).clamp(min=0)[None].to(tokens.features.device)
        if tokens.origin is None:
            return score
        return score.expand(tokens.origin.slot.shape[0], -1).gather(1, tokens.origin.slot)


def _stretched(score: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Each row from 0 to 1; all 0 where nothing differs."""
    low, high = score.aminmax(dim=1, keepdim=True)
    return (score - low) / (high - low).clamp(min=torch.finfo(score.dtype).tiny)
