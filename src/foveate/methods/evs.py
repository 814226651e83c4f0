"""Keep what changed since the frame before.  Efficient Video Sampling, Bagrov et al. 2025, arXiv 2510.14624."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float

from foveate.methods import Layout, ScoredMethod, VisualTokens, register
from foveate.methods.arithmetic.frames import by_frame, compared_bytes, likeness_to_earlier
from foveate.plan import SELECTED

if TYPE_CHECKING:
    from torch import Tensor


@register("evs")
@dataclass(frozen=True)
class EVS(ScoredMethod):
    """Keep the first frame of a clip, and the tokens that are least like the token at their place one frame earlier.

    A token's score is 1 minus its cosine to the token at the same place in the frame before. One ranking goes over the
    whole clip, so still frames keep few tokens and a cut keeps many. Of equal scores, the first token stays.

    Budget: `keep` is for the whole clip. The first frame is always whole, so at least one frame's tokens stay, even if
    the budget is smaller. The count follows from the shape of the clip alone.

    This is the rule that vLLM ships, with the same tokens and positions. The paper compares pixels; vLLM, and so this
    method, compares features.

    >>> frame = torch.eye(3)
    >>> tokens = VisualTokens.of(torch.stack([frame, frame, frame.roll(1, 0)]).view(1, 9, 3), (3, 1, 3))
    >>> EVS(keep=5).plan(tokens).slot.tolist()
    [[0, 1, 2, 6, 7]]
    """

    temporal = True
    operations = 18 + SELECTED
    paper = "arXiv 2510.14624"

    def count(self, layout: Layout) -> int:
        """Return the budget, or the tokens of one frame if they are more."""
        (clip,) = layout.segments
        return max(clip.h * clip.w, self.keep.count(layout.content))

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the comparison of one frame at a time."""
        return compared_bytes(tokens, width)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Score each token by how much it changed since the frame before; the first frame is above all."""
        frames = by_frame(tokens)
        length = frames.shape[1]
        changed = 1 - likeness_to_earlier(frames, range(1, length), range(length - 1))
        return torch.cat([torch.full_like(changed[:, :1], torch.inf), changed], dim=1).flatten(1)
