"""Keep each patch of pixels once.  PixelPrune, arXiv 2604.00886."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from foveate.methods import (
    AUTO,
    Effort,
    FoveateError,
    Layout,
    Pixels,
    Plan,
    ScoredMethod,
    Signal,
    VisualTokens,
    register,
)
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("pixelprune")
@dataclass(frozen=True)
class PixelPrune(ScoredMethod):
    """Drop tokens whose pixels are those of the token to the left, above, or at the same place one frame earlier.

    A token's score is the largest difference of one of its pixels, from the one of the three that is most like it, as a
    share of the span between the smallest and the largest pixel of the picture or clip. The first token has none of
    them, and always stays. White margins, plain backgrounds and static parts of clips keep one token each.

    Budget: `auto`, the default, keeps the tokens whose score is above `threshold`; 0.02 takes patches that differ by up
    to 2 % of the span for equal. A number keeps the highest scores, of equal ones the first.

    At `threshold=0`, `auto` is lossless in this sense: all pixels that the encoder gets can be put together again from
    those of the tokens that are kept. The answer may still change: the encoder gives equal patches at different places
    different features, since it attends to what is around them, and the decoder no longer sees how many there are.
    Above 0, a token is compared with its neighbour's own pixels, so slow changes over many tokens add up.

    Our reading of the idea. The authors drop patches before the encoder, which then has less to do; here the encoder
    sees all of them, so that the features of what is kept are the dense model's, and the decoder's work is saved.

    >>> pixels = torch.tensor([0.0, 0, 1, 0, 0, 1]).view(1, 6, 1)
    >>> tokens = VisualTokens.of(torch.randn(1, 6, 8), (2, 3), signals={Pixels(): pixels})
    >>> PixelPrune().plan(tokens).slot.tolist(), PixelPrune(keep=1).plan(tokens).slot.tolist()
    ([[0, 2]], [[0]])
    """

    # A Keep, read as in Method: numbers and text are accepted too.
    keep: Any = AUTO
    threshold: float = 0.0

    adaptive = True
    paper = "arXiv 2604.00886"
    unchanged_if_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise FoveateError(f"threshold {self.threshold} must be a share of the span of pixels: from 0 to below 1")

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The pixels of each token."""
        return (Pixels(),)

    @property
    def ragged(self) -> bool:
        """Whether counts differ between images: only if the image decides."""
        return self.keep.auto

    def count(self, layout: Layout) -> int:
        """Return the most tokens: all, if the image decides."""
        return layout.content if self.keep.auto else self.keep.count(layout.content)

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the fewest and the most tokens: one of each grid, and all, if the image decides."""
        most = self.count(layout)
        return (len(layout.segments) if self.keep.auto else most), most

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: tokens are compared with three neighbours; `auto` asks the device how many are kept."""
        compared = 3 * 3 * tokens * width
        return Effort(compared, 35 + SELECTED, 2) if self.keep.auto else Effort(compared, 25 + SELECTED)

    def memory(self, tokens: int, width: int) -> int:
        """Count the differences to one neighbour and their absolute values, for as many pixels as features are wide."""
        return 2 * 4 * tokens * width + 17 * tokens

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Score each token by how much it differs from the neighbour that is most like it."""
        pixels = tokens.signals[Pixels()].float()
        span = (pixels.amax((1, 2)) - pixels.amin((1, 2))).clamp(min=torch.finfo(torch.float32).tiny)
        scores: list[Tensor] = []
        begin = 0
        for segment in tokens.layout.segments:
            part = pixels[:, begin : begin + segment.count]
            begin += segment.count
            grid = part.reshape(part.shape[0], segment.t, segment.h, segment.w, -1)
            nearest = grid.new_full(grid.shape[:-1], torch.inf)
            for axis in (1, 2, 3):
                length = grid.shape[axis] - 1
                apart = (grid.narrow(axis, 1, length) - grid.narrow(axis, 0, length)).abs().amax(dim=-1)
                nearest = nearest.minimum(torch.nn.functional.pad(apart, (0, 0) * (3 - axis) + (1, 0), value=torch.inf))
            scores.append(nearest.flatten(1))
        return torch.cat(scores, dim=1) / span[:, None]

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the tokens above the threshold, or as many as are asked for."""
        if not self.keep.auto:
            return super().plan(tokens)
        return Plan.keeping(self.score(tokens) > self.threshold)
