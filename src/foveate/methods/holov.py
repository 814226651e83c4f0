"""Set a budget for each window, then keep its most attended tokens.  HoloV, Zou et al. 2025, arXiv 2510.02912."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods import Effort, EncoderAttention, Method, Plan, Positions, Signal, VisualTokens, register
from foveate.methods.arithmetic.parts import filled_up, top_of_each
from foveate.numbers import Between


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

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the [CLS] attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: cosines inside windows, and a few sorts."""
        pairs = tokens**2 / min(self.windows, tokens)
        return Effort(2 * pairs * width + 8 * pairs + 4 * tokens * width, 50)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Compute the quotas, then keep the most attended tokens of each window."""
        attention = tokens.signals[self.needs[0]].float()
        count = attention.shape[1]
        kept = self.count(tokens.layout)
        windows = min(self.windows, count)
        # If the count doesn't divide, the first windows are one longer; the last place of the others is empty.
        run, longer = divmod(count, windows)
        begin = torch.arange(windows) * run + torch.arange(windows).clamp(max=longer)
        length = run + (torch.arange(windows) < longer).long()
        place = begin[:, None] + torch.arange(run + bool(longer))
        real = (torch.arange(place.shape[1]) < length[:, None]).to(attention.device)
        place = place.clamp(max=count - 1).to(attention.device)

        score = self._scores(tokens.features.float()[:, place], attention[:, place], real)
        share = score / (score.sum(dim=1, keepdim=True) + 1e-6)
        quota = (share * kept).floor().long()
        rank = share.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        quota = quota + (rank < kept - quota.sum(dim=1, keepdim=True))
        window = torch.repeat_interleave(torch.arange(windows), length, output_size=count).to(attention.device)
        return Plan(slot=filled_up(top_of_each(attention, window, quota), attention, kept))

    def _scores(
        self, x: Float32[Tensor, "B P W D"], attention: Float32[Tensor, "B P W"], real: Bool[Tensor, "P W"]
    ) -> Float32[Tensor, "B P"]:
        """Return the score of each window; only places that are `real` count."""
        unit = normalize(x, dim=-1)
        alike = unit @ unit.transpose(-1, -2)
        itself = torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
        alike = alike.masked_fill(itself | ~real[:, None] | ~real[..., None], 0)
        size = real.sum(dim=1)
        others = (size - 1).clamp(min=1)[:, None]
        mean = alike.sum(dim=-1) / others
        variety = ((alike - mean[..., None]).square() * real[:, None]).sum(dim=-1) / others
        looked_at = (attention * 1e3 * real).sum(dim=-1) / size
        varied = (variety * real).sum(dim=-1) / size
        return looked_at + self.alpha * varied * (looked_at / (varied + 1e-6))
