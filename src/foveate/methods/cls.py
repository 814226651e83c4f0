"""Keep the tokens that [CLS] looks at.  FasterVLM, Zhang et al. 2024, arXiv 2412.01818."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from foveate.methods import EncoderAttention, Positions, ScoredMethod, Signal, VisualTokens, register


@register("cls", "fastervlm")
@dataclass(frozen=True)
class Cls(ScoredMethod):
    """Top-k visual tokens by the encoder's [CLS] attention, averaged over heads.

    Reads nothing of the prompt, so one compressed image serves every question about it. Encoders without a [CLS]
    (SigLIP, Qwen-VL) give the mean attention that a token receives instead.

    This is FasterVLM, and HiRED on a single grid; the "saliency" that Token Sequence Compression compares with,
    taken from the encoder. Nothing departs from FasterVLM's code: the next to last layer, new position ids without
    gaps. `fastervlm:64` is read as `cls:64`.

    >>> import torch
    >>> tokens = VisualTokens.of(torch.randn(8, 576, 4), (24, 24), encoder_attention=torch.rand(8, 576))
    >>> Cls(keep=64).plan(tokens).slot.shape
    torch.Size([8, 64])
    """

    positions: Positions = "pack"
    layer: int = -2

    paper = "arXiv 2412.01818"

    @property
    def needs(self) -> tuple[Signal, ...]:
        """[CLS] attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """The attention itself."""
        return tokens.signals[self.needs[0]]
