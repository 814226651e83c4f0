"""Keep the tokens that [CLS] attends to most.  FasterVLM, Zhang et al. 2024, arXiv 2412.01818."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from foveate.methods import EncoderAttention, Positions, ScoredMethod, Signal, VisualTokens, register
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("cls", "fastervlm")
@dataclass(frozen=True)
class Cls(ScoredMethod):
    """Keep the k visual tokens with the highest [CLS] attention in the encoder, averaged over heads.

    The method doesn't read the prompt, so one compressed image serves every question about it. For encoders without a
    [CLS] (SigLIP, Qwen-VL) it uses the mean attention that a token receives.

    This is FasterVLM. It is also HiRED on a single grid, and the "saliency" baseline of Token Sequence Compression,
    taken from the encoder. It does the same as FasterVLM's code: it reads the next to last layer and gives new position
    ids without gaps. `fastervlm:64` means `cls:64`.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.randn(8, 576, 4), (24, 24), encoder_attention=torch.rand(8, 576))
    >>> Cls(keep=64).plan(tokens).slot.shape
    torch.Size([8, 64])
    """

    positions: Positions = "pack"
    layer: int = -2

    paper = "arXiv 2412.01818"
    unchanged_if_all = True
    operations = 2 + SELECTED

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention as the score."""
        return tokens.signals[self.needs[0]]
