"""Drop more tokens at each of several decoder layers.  PyramidDrop, Xing et al. 2024, arXiv 2410.17247."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from foveate.methods import DecoderAttention, Positions, ScoredMethod, Signal, VisualTokens, register

if TYPE_CHECKING:
    from torch import Tensor


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(ScoredMethod):
    """Keep the top-k visual tokens by the attention that the prompt's last token gives them, at several layers.

    At `@k` the method computes the queries and keys of layer k from the layer's input, so it knows the attention of
    that layer before the layer runs. The authors keep half of the tokens at each of layers 8, 16 and 24 of 32:
    `pyramiddrop:0.5@8,16,24` keeps 288, 144 and 72 of 576. The method reads the question, so its result serves that
    question only.

    As in the authors' code, the kept tokens and all later tokens get new position ids without gaps from each such
    layer on. `positions=keep` keeps position ids, and then dropping equals masking.

    Differs from the authors' code: a fraction is of the tokens that arrive, rounded half up (theirs: of the whole
    image, rounded down); and one row of attention per prompt is read in training too (theirs: the mean of one row per
    answer).

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
    unchanged_if_all = True
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Attention of the layer at whose input the method acts."""
        return (DecoderAttention(rows="last", layer="here"),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention itself."""
        return tokens.signals[self.needs[0]].float()
