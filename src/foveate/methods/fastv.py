"""Keep the tokens that the prompt's last token looks at.  FastV, Chen et al. 2024, arXiv 2403.06764."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from foveate.methods import DecoderAttention, ScoredMethod, Signal, VisualTokens, register


@register("fastv")
@dataclass(frozen=True)
class FastV(ScoredMethod):
    """Top-k visual tokens by the attention that text gave them in the decoder layer before, averaged over heads.

    At `@k` it reads layer k - 1 and acts at the input of layer k; the authors take 2, with half or a quarter of the
    tokens. Kept tokens keep their positions. Reads the question, so its result serves that question alone.

    `rows=last`, the authors' code, reads the row of the prompt's last token. `rows=text` takes the mean over all text
    after the image, which is nearer to the paper's text. Keep is what remains from layer k on; papers that compare
    with FastV often print the mean over layers instead.

    Differs from the authors' code: a fraction is rounded half up (theirs: to even, 22 of 90 x 0.25), the rule acts on
    each image alone and on batches, and the random choice that they make for k = 0 is `random`.

    >>> import torch
    >>> attention = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    >>> tokens = VisualTokens.of(torch.zeros(1, 4, 2), (2, 2), decoder_attention=attention)
    >>> FastV(keep=2).plan(tokens).slot.tolist()
    [[1, 3]]
    """

    rows: Literal["last", "text"] = "last"

    place = "decoder"
    layers = (2,)
    paper = "arXiv 2403.06764"
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Attention of the layer before."""
        return (DecoderAttention(rows=self.rows, layer="previous"),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """The attention itself; of many rows, their mean."""
        attention = tokens.signals[self.needs[0]].float()
        return attention if self.rows == "last" else attention.mean(dim=1)
