"""Keep whole frames of a clip, evenly spaced: a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.methods import KeepError, Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import axis
from foveate.plan import SELECTED


@register("frames")
@dataclass(frozen=True)
class Frames(Method):
    """Keep as many whole frames of a clip as the budget holds, evenly spaced.

    The clip is cut into equal parts, and the middle frame of each part stays with all its tokens (the earlier of two).
    A baseline that every method for clips must beat. It is what a lower frame rate does, but the encoder still sees all
    frames. The number of kept tokens may be below the budget. A budget below the tokens of one frame is refused.

    >>> tokens = VisualTokens.of(torch.randn(1, 16, 8), (8, 1, 2))
    >>> Frames(keep=4).plan(tokens).slot.tolist()
    [[2, 3, 10, 11]]
    """

    temporal = True
    operations = 4 + SELECTED
    fixed = True

    def count(self, layout: Layout) -> int:
        """Return the tokens of the frames that are kept.

        Raises:
            KeepError: the budget is below the tokens of one frame.
        """
        (clip,) = layout.segments
        budget, frame = self.keep.count(layout.content), clip.h * clip.w
        if budget < frame:
            raise KeepError(
                f"keep {self.keep} is {budget} of {layout.content} tokens, and {self.name} keeps whole frames; keep at "
                f"least {frame}"
            )
        return budget // frame * frame

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the frame in the middle of each part."""
        (clip,) = tokens.layout.segments
        frame, device = clip.h * clip.w, tokens.features.device
        _, middle = axis(clip.t, self.count(tokens.layout) // frame)
        places = torch.tensor(middle).to(device, non_blocking=True)[:, None] * frame + torch.arange(
            frame, device=device
        )
        return Plan(slot=places.flatten().expand(tokens.features.shape[0], -1))
