"""Fewer tokens the deeper the layer.  PyramidDrop, Xing et al. 2024, arXiv 2410.17247."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from foveate.methods import DecoderAttention, Positions, ScoredMethod, Signal, VisualTokens, register


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(ScoredMethod):
    """Top-k visual tokens by the attention that the prompt's last token is about to give them, at several layers.

    At `@k` it reads the queries and keys that layer k makes of what arrives there, so the layer's own attention is
    known before it runs. The authors keep half at each of layers 8, 16 and 24 of 32: `pyramiddrop:0.5@8,16,24` is 288,
    144 and 72 of 576. Reads the question, so its result serves that question alone.

    As in the authors' code, what is left is numbered anew from each such layer on, and so is every later token;
    `positions=keep` keeps position ids, and then dropping equals masking.

    Differs from the authors' code: a fraction counts what arrives, rounded half up (theirs: the whole image, rounded
    down); and there is one row per prompt also when answers are learnt from (theirs: the mean of one per answer).

    >>> import torch
    >>> attention = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    >>> tokens = VisualTokens.of(torch.zeros(1, 4, 2), (2, 2), decoder_attention=attention)
    >>> PyramidDrop(keep=0.5).plan(tokens).slot.tolist()
    [[1, 3]]
    """

    positions: Positions = "pack"

    place = "decoder"
    layers = (8, 16, 24)
    paper = "arXiv 2410.17247"
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Attention of the layer to come."""
        return (DecoderAttention(rows="last", layer="here"),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """The attention itself."""
        return tokens.signals[self.needs[0]].float()
