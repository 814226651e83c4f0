"""Keep the tokens that words about the image attend to.  SparseVLM, Zhang et al. 2024, arXiv 2410.04417."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Bool, Float

from foveate.methods import (
    Behind,
    DecoderAttention,
    DecoderInput,
    Effort,
    Layout,
    Method,
    Plan,
    Positions,
    Signal,
    VisualTokens,
    register,
)
from foveate.methods.arithmetic.density import density_bytes, density_peaks
from foveate.methods.arithmetic.groups import in_order
from foveate.plan import AVERAGED, SELECTED

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 64
"""Words of text, where estimates of memory must take some number."""


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(Method):
    """Keep the top-k visual tokens by attention from the text tokens about the image, and merge some of the others.

    Raters are the text tokens after the image that are more similar than average to its tokens. Similarity compares
    both as they enter the decoder: the softmax over text of the dot products, then the mean over the image. A visual
    token's score is the attention that raters gave it in the previous layer, mean over heads. The best three tenths of
    the dropped tokens are clustered by their density, one cluster for every ten, and the mean of each cluster takes the
    place of its centre. The method reads the question, so its result serves that question only.

    The authors act on the outputs of layers 2, 6 and 15 of 32, which are the inputs of 3, 7 and 16: `@3,7,16`. Their
    tables for 576 tokens count kept tokens only, without merged ones: 300, 200 and 110 ("192"), 303, 110 and 36
    ("128"), 238, 48 and 26 ("96"), 66, 30 and 17 ("64"); each name is about the mean over layers. With `recycle=within`
    merged tokens count towards keep, so that `keep` tokens remain; with `recycle=beside` they are added to it, as in
    those tables; `recycle=none` merges nothing.

    Differs from the authors' code: merged tokens are in raster order (theirs: after the kept ones); ties in density are
    broken by order (theirs: by noise); if the budget is everything, nothing is dropped (theirs: one token). The fixed
    tables are those of the code; the paper's count from the rank of the attention is `sparsevlm-rank`.

    >>> attention = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.1, 0.4, 0.2, 0.3]]])
    >>> answers = {DecoderInput("visual"): torch.ones(1, 4, 2), DecoderInput("text"): torch.ones(1, 2, 2)}
    >>> answers[Behind()] = torch.tensor([[False, True]])
    >>> tokens = VisualTokens.of(torch.randn(1, 4, 2), (2, 2), decoder_attention=attention, signals=answers)
    >>> SparseVLM(keep=2, recycle="none").plan(tokens).slot.tolist()
    [[1, 3]]
    >>> SparseVLM(keep=2, recycle="beside").plan(tokens).group.tolist()
    [[-1, 0, 1, 2]]
    """

    positions: Positions = "pack"
    recycle: Literal["within", "beside", "none"] = "within"

    place = "decoder"
    _rated: ClassVar[int] = 23
    layers = (3, 7, 16)
    paper = "arXiv 2410.04417"
    unchanged_if_all = True
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Attention of the previous layer, and the input of the decoder."""
        return (DecoderAttention(rows="text", layer="previous"), DecoderInput("visual"), DecoderInput("text"), Behind())

    def count(self, layout: Layout) -> int:
        """Return the number of kept and merged tokens."""
        return sum(self.split(layout.content))

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the comparison of 16 words of text with all tokens, and of recycled tokens with each other."""
        kept, merged = self.split(tokens)
        recycled = _recycled(tokens - kept) if merged else 0
        made = 58 + AVERAGED if merged else SELECTED
        return Effort(2 * (16 * tokens + recycled**2) * width, self._rated + made)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the density of recycled tokens; without any, the comparison of 64 words of text with all tokens."""
        kept, merged = self.split(tokens)
        recycled = _recycled(tokens - kept) if merged else 0
        dense = density_bytes(recycled, width, merged) + 4 * recycled * width if recycled else 0
        return max(dense + 20 * tokens, 8 * WORDS * tokens)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the top-k by score, and merge groups of the best others."""
        return keep_and_recycle(self.score(tokens), tokens.features, *self.split(tokens.features.shape[1]))

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention of the raters, in float32."""
        attention = tokens.signals[self.needs[0]].float()
        rate = raters(tokens).float()
        return torch.einsum("btn,bt->bn", attention, rate / rate.sum(dim=1, keepdim=True))

    def split(self, arrive: int, remain: int | None = None) -> tuple[int, int]:
        """Return how many of `arrive` tokens are kept unchanged, and how many merged tokens are made.

        `remain` is the budget, by default that of `keep`.
        """
        remain = self.keep.count(arrive) if remain is None else remain
        if self.recycle == "none" or remain == arrive:
            return remain, 0
        if self.recycle == "beside":
            return remain, _clusters(arrive - remain)
        # Merged tokens never outnumber the kept ones, even with a small budget.
        least = remain - remain // 2
        kept = next((k for k in range(remain, least, -1) if k + _clusters(arrive - k) <= remain), least)
        return kept, remain - kept


def keep_and_recycle(score: Float[Tensor, "B N"], features: Float[Tensor, "B N D"], kept: int, merged: int) -> Plan:
    """Keep the `kept` best tokens unchanged, and merge the best of the others into `merged` groups."""
    order = score.argsort(dim=1, descending=True, stable=True)
    best = order[:, :kept]
    if not merged:
        return Plan(slot=best.sort(dim=1).values)
    recycled = order[:, kept : kept + _recycled(order.shape[1] - kept)]
    centre, label = density_peaks(Plan(slot=recycled).select(features), merged, neighbours=merged)
    numbers = torch.arange(kept, device=order.device).expand_as(best)
    group = torch.full_like(order, -1).scatter(1, best, numbers).scatter(1, recycled, label + kept)
    return in_order(torch.cat([best, recycled.gather(1, centre)], dim=1), group)


def raters(tokens: VisualTokens) -> Bool[Tensor, "B T"]:
    """Mark the text tokens that rate the visual ones: `(B, T)` bool, at least one per row.

    If none is more similar than average, all text tokens after the image are raters.

    Args:
        tokens: with the signals `DecoderInput` of both kinds and `Behind`.
    """
    behind = tokens.signals[Behind()]
    behind = behind | ~behind.any(dim=1, keepdim=True)
    visual, text = (tokens.signals[DecoderInput(of)].float() for of in ("visual", "text"))
    like = (visual @ text.transpose(1, 2)).masked_fill(~behind[:, None], -torch.inf).softmax(dim=2).mean(dim=1)
    chosen = like > like.sum(dim=1, keepdim=True) / behind.sum(dim=1, keepdim=True)
    return torch.where(chosen.any(dim=1, keepdim=True), chosen, behind)


def _recycled(dropped: int) -> int:
    """Return how many of the dropped tokens are merged."""
    return min(dropped, int(dropped * 0.3) + 1)


def _clusters(dropped: int) -> int:
    """Return into how many tokens they are merged."""
    return _recycled(dropped) // 10 + 1
