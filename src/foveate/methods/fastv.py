"""Keep the tokens that the prompt's last token attends to.  FastV, Chen et al. 2024, arXiv 2403.06764."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float

from foveate.methods import DecoderAttention, ScoredMethod, Signal, VisualTokens, register

if TYPE_CHECKING:
    from torch import Tensor


@register("fastv")
@dataclass(frozen=True)
class FastV(ScoredMethod):
    """Keep the k visual tokens with the highest attention from text in the previous decoder layer, averaged over heads.

    At `@k` the method reads layer k - 1 and acts at the input of layer k. The authors use k = 2 and keep half or a
    quarter of the tokens. Kept tokens keep their positions. The method reads the question, so its result serves only
    that question.

    `rows=last` reads the row of the prompt's last token, as in the authors' code. `rows=text` takes the mean over all
    text after the image, which is closer to the paper's text. `keep` is the number of tokens from layer k on; papers
    that compare with FastV often print the mean over layers instead.

    Differences from the authors' code: a fraction is rounded half up (theirs: half to even, 22 of 90 x 0.25). The rule
    acts on each image separately, and on batches. Their random choice for k = 0 is the method `random` here.

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
    unchanged_if_all = True
    query_aware = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the attention of the previous layer."""
        return (DecoderAttention(rows=self.rows, layer="previous"),)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention as the score, averaged if it has several rows."""
        attention = tokens.signals[self.needs[0]].float()
        return attention if self.rows == "last" else attention.mean(dim=1)
