"""Prune frames by likeness to an earlier frame.  DyCoke, its first stage, Tao et al. 2024, arXiv 2411.15024."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch

from foveate.methods import FoveateError, KeepError, Layout, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.frames import by_frame, compared_bytes, likeness_to_earlier
from foveate.plan import SELECTED


@register("dycoke")
@dataclass(frozen=True)
class DyCoke(Method):
    """Keep every fourth frame whole, and of each other frame the tokens least like those of an earlier frame.

    Frames 1, 3, 5, ... are compared with the frame before, and frames 2, 6, 10, ... with the frame two before; tokens
    at the same place are compared, by cosine. Each pruned frame keeps equally many tokens, and nothing is merged,
    although the authors call the stage temporal merging. Of equal cosines the first token stays.

    Budget: `keep` is for the whole clip. Each pruned frame keeps the most tokens that fit, so the number of kept tokens
    may be below the budget. A budget below the whole frames and one token of each other is refused. The count follows
    from the shape of the clip alone. The authors' merging ratio of 0.7 keeps about 0.475 of a long clip.

    Against the authors' code: theirs loses the last frame of an odd number, leaves frames 2, 6, ... whole in the last
    four, and fails with 4 frames or fewer. With `rest=drop` this method does the same (and refuses so few frames).
    Theirs sorts a pruned frame by rising cosine; here all tokens are in raster order. Their second stage, which prunes
    the cache while it decodes, is not part of this method.

    >>> frame = torch.eye(3)
    >>> tokens = VisualTokens.of(torch.stack([frame, frame.roll(1, 0), frame, frame]).view(1, 12, 3), (4, 1, 3))
    >>> DyCoke(keep=6).plan(tokens).slot.tolist()
    [[0, 1, 2, 3, 6, 9]]
    """

    rest: Literal["keep", "drop"] = "keep"

    temporal = True
    operations = 26 + SELECTED
    paper = "arXiv 2411.15024"

    def count(self, layout: Layout) -> int:
        """Return the tokens of whole frames, and of pruned ones as many as fit.

        Raises:
            KeepError: the budget is below the whole frames and one token of each other.
            FoveateError: the clip has too few frames for `rest=drop`.
        """
        (clip,) = layout.segments
        if self.keep.count(layout.content) == layout.content:
            return layout.content
        whole, pruned = self._frames(clip.t)
        return len(whole) * clip.h * clip.w + len(pruned) * self._of_each(layout)

    def _frames(self, frames: int) -> tuple[list[int], list[int]]:
        """Return the whole and the pruned frames; with `rest=drop` a last one may be in neither."""
        if self.rest == "keep":
            pruned = [number for number in range(frames) if number % 4]
            return list(range(0, frames, 4)), pruned
        if frames <= 4:
            raise FoveateError(
                f"rest=drop does as the authors' code, which needs 5 frames or more, and this clip has {frames}; leave "
                "rest out"
            )
        pairs = frames // 2 * 2
        pruned = sorted([*range(1, pairs, 2), *range(2, frames - 2, 4)])
        return [number for number in range(pairs) if number not in pruned], pruned

    def _of_each(self, layout: Layout) -> int:
        """Return how many tokens each pruned frame keeps."""
        (clip,) = layout.segments
        whole, pruned = map(len, self._frames(clip.t))
        budget, frame = self.keep.count(layout.content), clip.h * clip.w
        least = whole * frame + pruned
        if budget < least:
            raise KeepError(
                f"keep {self.keep} is {budget} of {layout.content} tokens, and {self.name} keeps {whole} of {clip.t} "
                f"frames whole, and a token of others; keep at least {least}"
            )
        return min(frame, (budget - whole * frame) // pruned)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the comparison of one frame at a time."""
        return compared_bytes(tokens, width)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Prune frames by their cosine to earlier ones."""
        features, layout = tokens.features, tokens.layout
        images, count = features.shape[:2]
        if self.count(layout) == count:
            return Plan(slot=torch.arange(count, device=features.device).expand(images, -1))
        whole, pruned = self._frames(layout.segments[0].t)
        frames = by_frame(tokens)
        earlier = [number - (2 if number % 4 == 2 else 1) for number in pruned]
        numbers = torch.tensor([*whole, *pruned, *earlier]).to(features.device, non_blocking=True)
        entire, fewer, before = (
            numbers[begin:end] for begin, end in pairwise(accumulate((len(whole), len(pruned), len(pruned)), initial=0))
        )
        alike = likeness_to_earlier(frames, fewer, before)
        least = alike.argsort(dim=2, stable=True)[..., : self._of_each(layout)]
        begins = torch.arange(frames.shape[1], device=features.device) * frames.shape[2]
        kept = (least + begins[fewer, None]).flatten(1)
        places = begins[entire, None] + torch.arange(frames.shape[2], device=features.device)
        return Plan(slot=torch.cat([places.flatten().expand(images, -1), kept], dim=1).sort(dim=1).values)
