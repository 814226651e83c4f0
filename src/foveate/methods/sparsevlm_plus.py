"""SparseVLM with corrected attention of the most visual heads.  SparseVLM+, arXiv 2410.04417, its code's "2_0"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float

from foveate.methods import (
    Behind,
    DecoderAttention,
    DecoderInput,
    FoveateError,
    Positions,
    RotaryLogits,
    Signal,
    VisualTokens,
    register,
)
from foveate.methods.arithmetic.products import BLOCK_BYTES, row_blocks
from foveate.methods.sparsevlm import WORDS, SparseVLM, raters

if TYPE_CHECKING:
    from torch import Tensor


@register("sparsevlm-plus")
@dataclass(frozen=True)
class SparseVLMPlus(SparseVLM):
    """Keep tokens as `sparsevlm` does, by attention that is corrected for position, in the most visual heads only.

    Rotary embedding favours near tokens, which are the last ones of the image. So the attention of each head is divided
    by the logit between a query and a key of ones at the same positions. Then the `heads` heads with the largest sums
    over raters and visual tokens are averaged. The method merges nothing and keeps positions. The authors' tables for
    576 tokens are 300, 200 and 118 ("192"), 238, 108 and 60 ("128"), 246, 54 and 28 ("96"), 66, 34 and 20 ("64"), at
    `@3,7,16`. The method reads the question, so its result serves that question only.

    In some models the divisor comes close to zero, or changes its sign, at some distances; scores are then large and
    mean little. We keep the authors' formula anyway. This is written from the released code; we have not seen the text
    of its paper.

    >>> attention = torch.tensor([[[[0.2, 0.1, 0.3, 0.4]]]])
    >>> answers = {RotaryLogits(): torch.tensor([[[0.5, 1.0, 2.0, 4.0]]])}
    >>> answers |= {DecoderInput("visual"): torch.ones(1, 4, 2), DecoderInput("text"): torch.ones(1, 1, 2)}
    >>> answers[Behind()] = torch.tensor([[True]])
    >>> tokens = VisualTokens.of(torch.zeros(1, 4, 2), (2, 2), decoder_attention=attention, signals=answers)
    >>> SparseVLMPlus(keep=2).plan(tokens).slot.tolist()
    [[0, 2]]
    """

    positions: Positions = "keep"
    recycle: Literal["within", "beside", "none"] = "none"
    heads: int = 14

    _rated = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1:
            raise FoveateError(f"heads={self.heads}: the scores are of at least 1 head")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Attention of each head of the previous layer, logits of rotary embedding, and the input of the decoder."""
        attention = DecoderAttention(rows="text", layer="previous", heads="each")
        return (attention, RotaryLogits(), DecoderInput("visual"), DecoderInput("text"), Behind())

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the corrected attention of a few heads at a time, beside what `sparsevlm` holds."""
        head = 4 * WORDS * tokens
        return max(super().memory(tokens, width), head * max(1, BLOCK_BYTES // head) + (WORDS + 40) * tokens)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the corrected attention of the raters in the chosen heads, in float32."""
        attention = tokens.signals[self.needs[0]].float()
        rate = raters(tokens).float()
        rotary = tokens.signals[RotaryLogits()].float()[:, None]
        rate = (rate / rate.sum(dim=1, keepdim=True))[:, None, None]
        zero = rotary == 0
        blocks = row_blocks(attention.shape[1], rotary.numel(), rotary)
        each = torch.cat(
            [(rate @ (attention[:, some] / rotary).masked_fill_(zero, 0))[:, :, 0] for some in blocks], dim=1
        )
        order = each.sum(dim=2).argsort(dim=1, descending=True, stable=True)[:, : self.heads]
        return each.gather(1, order[..., None].expand(-1, -1, each.shape[2])).mean(dim=1)
