"""Set a budget for each window, then keep its most attended tokens.  HoloV, Zou et al. 2025, arXiv 2510.02912."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from jaxtyping import Bool, Float32, Num

from foveate.methods import Effort, EncoderAttention, Method, Plan, Positions, Signal, VisualTokens, register
from foveate.methods.arithmetic.parts import filled_up, top_of_each
from foveate.methods.arithmetic.products import BLOCK_BYTES, WHOLE, lengths, row_blocks
from foveate.numbers import Between
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor

_SHORTEST = 1e-12
"""The least norm that is divided by, as in torch's `normalize`."""


@register("holov")
@dataclass(frozen=True)
class HoloV(Method):
    """Keep the tokens with the highest [CLS] attention in each window, with a quota by mean attention and variety.

    A window is a run of tokens in raster order, as in the authors' code (16 windows of 24 x 24 tokens: a row and a half
    each); the paper uses crops. The score of a window is its mean attention plus `alpha` times its variety, the
    variance of a token's cosine to the other tokens of its window. Quotas are proportional to the scores and rounded
    down. The remainder goes to the windows with the highest scores, one token each.

    Variety is scaled to the mean attention of its window, as in the authors' code, so a score is in effect (1 + alpha)
    times the mean attention: `alpha` matters only for windows in which all tokens are almost the same.

    Budget: `keep` is the total over all windows. Nothing is merged.

    Differences from the authors' code: if a quota is larger than its window, theirs adds vectors of zeros; here the
    surplus goes to the most attended of all other tokens. Theirs scores a window of one token a thousand times lower
    than the others; here it is scored like the others. Theirs orders a window by falling attention; here all tokens are
    in raster order.

    >>> tokens = VisualTokens.of(torch.randn(2, 576, 8), (24, 24), encoder_attention=torch.rand(2, 576))
    >>> HoloV(keep=64).plan(tokens).slot.shape
    torch.Size([2, 64])
    """

    positions: Positions = "pack"
    windows: Annotated[int, Between(1)] = 16
    alpha: Annotated[float, Between(0, 1_000)] = 0.09
    layer: int = -2

    paper = "arXiv 2510.02912"
    unchanged_if_all = True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: cosines inside windows, and a few sorts."""
        pairs = tokens**2 / min(self.windows, tokens)
        return Effort(
            2 * pairs * width + 8 * pairs + 4 * tokens * width,
            61 + 9 * bool(tokens % min(self.windows, tokens)) + SELECTED,
        )

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cosines inside some windows, and the windows where they differ in length."""
        windows = min(self.windows, tokens)
        each = 4 * (-(-tokens // windows)) ** 2
        cosines = min(max(each, BLOCK_BYTES), windows * each) if tokens <= windows * WHOLE else BLOCK_BYTES
        return cosines + (4 * tokens * width if tokens % windows else 0) + 30 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Compute the quotas, then keep the most attended tokens of each window."""
        attention = tokens.signals[self.needs[0]].float()
        count = attention.shape[1]
        kept = self.count(tokens.layout)
        windows = min(self.windows, count)
        run, longer = divmod(count, windows)
        features = tokens.features.float()
        # If the count doesn't divide, the first windows are one longer; the last place of the others is empty.
        length = run + (torch.arange(windows) < longer).long()
        if longer:
            place = (length.cumsum(0) - length)[:, None] + torch.arange(run + 1)
            real = (torch.arange(run + 1) < length[:, None]).to(attention.device, non_blocking=True)
            place = place.clamp(max=count - 1).to(attention.device, non_blocking=True)
            score = self._scores(features[:, place], attention[:, place], real)
        else:
            parts = (len(features), windows, run)
            score = self._scores(features.reshape(*parts, -1), attention.reshape(parts), None)
        share = score / (score.sum(dim=1, keepdim=True) + 1e-6)
        quota = (share * kept).floor().long()
        rank = share.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        quota = quota + (rank < kept - quota.sum(dim=1, keepdim=True))
        window = torch.repeat_interleave(torch.arange(windows), length, output_size=count).to(
            attention.device, non_blocking=True
        )
        return Plan(slot=filled_up(top_of_each(attention, window, quota), attention, kept))

    def _scores(
        self,
        x: Float32[Tensor, "B P W D"],
        attention: Float32[Tensor, "B P W"],
        real: Bool[Tensor, "P W"] | None,
    ) -> Float32[Tensor, "B P"]:
        """Return the score of each window; only places that are `real` count, or all."""
        images, windows, most, _ = x.shape
        size = x.new_full((windows,), most)
        if real is not None:
            attention, size = attention * real, real.sum(dim=1)
        every = None if real is None else real.repeat(images, 1)
        varied = _variety(x.flatten(0, 1), size.repeat(images), every).view(images, windows)
        looked_at = attention.sum(dim=-1) * 1e3 / size
        return looked_at + self.alpha * varied * (looked_at / (varied + 1e-6))


def _variety(
    x: Float32[Tensor, "Q W D"], size: Num[Tensor, " Q"], real: Bool[Tensor, "Q W"] | None
) -> Float32[Tensor, " Q"]:
    """Return the mean variance of cosines in each window, from a few windows or rows of a large window at a time."""
    most = x.shape[1]
    # Dividing the products by the norms passes over fewer numbers than dividing the features.
    scale = lengths(x).clamp_(min=_SHORTEST).reciprocal_()
    if real is not None:
        scale = scale * real
    others = (size - 1).clamp(min=1)[:, None]
    variety = torch.empty_like(scale)
    for some in row_blocks(len(x), most**2, x):
        for rows in [slice(0, most)] if most <= WHOLE else row_blocks(most, most, x):
            alike = torch.bmm(x[some, rows], x[some].transpose(1, 2))
            alike.mul_(scale[some, rows, None]).mul_(scale[some, None])
            alike.diagonal(rows.start, dim1=1, dim2=2).zero_()
            apart = alike.sub_(alike.sum(dim=2, keepdim=True) / others[some, None]).square_()
            if real is not None:
                apart.mul_(real[some, None] & real[some, rows, None])
            variety[some, rows] = apart.sum(dim=2) / others[some]
            del alike, apart
    return variety.sum(dim=1) / size
