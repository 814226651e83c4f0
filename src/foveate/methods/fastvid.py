"""Cut a clip into segments; keep salient tokens and density peaks.  FastVID, Shen et al. 2025, arXiv 2503.11187."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from jaxtyping import Bool, Float, Int64

from foveate.methods import Effort, EncoderAttention, KeepError, Layout, Method, Plan, Signal, VisualTokens, register
from foveate.methods.arithmetic.density import density_peaks
from foveate.methods.arithmetic.frames import FRAME, by_frame, likeness
from foveate.methods.arithmetic.parts import filled_up
from foveate.methods.arithmetic.products import BLOCK_BYTES, row_blocks, unit_vectors
from foveate.numbers import Between
from foveate.plan import MIXED

if TYPE_CHECKING:
    from torch import Tensor


@register("fastvid")
@dataclass(frozen=True)
class FastVID(Method):
    """Cut a clip where frames change, keep salient tokens of each frame, and merge the rest of a segment into anchors.

    The clip is cut where neighbouring frames have a cosine below `tau`, and at its `segments` - 1 lowest cosines. Of
    each frame, the tokens with the highest encoder attention stay as they are. The share `context` of a frame's budget
    is pooled over its segment, and goes to anchors: density peaks (as in `dpc-knn`, over 4 neighbours) among the other
    tokens of every `step`-th frame, counted back from the segment's last one. For each of these frames, every other
    token of the segment joins the anchor of the highest cosine. An anchor of n tokens becomes w times itself and 1 - w
    times their mean, where w is 1 / (n + 1), but at least `beta`.

    Budget: `keep` is for the whole clip; all frames get equally many tokens. What the divisions leave over goes to the
    tokens with the highest attention of all others, so exactly the budget stays. With `remainder=drop` it is lost, as
    in the authors' code, and clips may differ in their number of tokens.

    Against the authors' code: frames are compared by the mean of their features (there: by pooled features of SigLIP's
    head). Salience is the attention that a token gets in the encoder (there: from that head). Equal densities are in
    token order (there: a little random noise). More anchors than a frame has tokens fail there.

    >>> tokens = VisualTokens.of(torch.randn(2, 128, 8), (8, 4, 4), encoder_attention=torch.rand(2, 128))
    >>> FastVID(keep=32).plan(tokens).slot.shape
    torch.Size([2, 32])
    """

    segments: Annotated[int, Between(1)] = 8
    tau: Annotated[float, Between(-1, 1)] = 0.9
    context: Annotated[float, Between(0, 1)] = 0.4
    step: Annotated[int, Between(1)] = 4
    beta: Annotated[float, Between(0, 1)] = 0.6
    layer: int = -2
    remainder: Literal["fill", "drop"] = "fill"

    temporal = True
    paper = "arXiv 2503.11187"

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the attention of one encoder layer."""
        return (EncoderAttention(layer=self.layer),)

    @property
    def ragged(self) -> bool:
        """Return whether clips may differ in their number of tokens: only if the remainder is dropped."""
        return self.remainder == "drop"

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the budget twice, or the fewest and the most over all ways to cut the clip.

        Raises:
            KeepError: the remainder is dropped, and nothing else is there: the budget is below a token of each frame.
        """
        kept = self.keep.count(layout.content)
        if not self.ragged or kept == layout.content:
            return kept, kept
        (clip,) = layout.segments
        salient, context = self._of_a_frame(layout)
        if not salient + context:
            raise KeepError(
                f"keep {self.keep} is {kept} of {layout.content} tokens, and remainder=drop keeps equally many of each "
                f"frame; keep at least {clip.t}"
            )
        fewest, most = [0], [0]
        for end in range(1, clip.t + 1):
            sizes = range(1, end + 1)
            anchors = [math.prod(share(size, context, self.step, clip.h * clip.w - salient)) for size in sizes]
            fewest.append(min(fewest[end - size] + own for size, own in zip(sizes, anchors)))
            most.append(max(most[end - size] + own for size, own in zip(sizes, anchors)))
        return clip.t * salient + fewest[-1], clip.t * salient + most[-1]

    def count(self, layout: Layout) -> int:
        """Return the most tokens that can stay."""
        return self.bounds(layout)[1]

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the distances inside frames, taken to be of 196 tokens, and the cosines to anchors."""
        kept, each = self.keep.count(tokens), min(tokens, 196)
        work = 2 * tokens * width * (each + kept / self.segments) + 10 * tokens * kept
        return Effort(work, 86 + 23 * self.segments + MIXED, 3 if self.ragged else 1)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the map of all kept tokens, and blocks of cosines; frames are taken to be of 256 tokens."""
        mix = 4 * self.keep.count(tokens) * tokens + min(BLOCK_BYTES, 4 * tokens * width) // 2
        densities = min(2 * BLOCK_BYTES, 8 * tokens * (width + FRAME))
        return max(mix, densities) + 60 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Cut the clip by the means of its frames, then choose and merge."""
        return self.plan_by(tokens, by_frame(tokens).float().mean(dim=2))

    def plan_by(self, tokens: VisualTokens, frame_features: Float[Tensor, "B T W"]) -> Plan:
        """Plan with features of each frame, of any width, that tell where to cut."""
        attention = tokens.signals[self.needs[0]].float()
        (images, count), kept = attention.shape, self.count(tokens.layout)
        if self.keep.count(count) == count:
            return Plan(slot=torch.arange(count, device=attention.device).expand(images, -1))
        frames = by_frame(tokens).float()
        salient, context = self._of_a_frame(tokens.layout)
        length, per_frame = frames.shape[1:3]
        begins = torch.arange(length, device=attention.device)[:, None] * per_frame
        order = attention.view(images, length, per_frame).argsort(dim=2, descending=True, stable=True)
        chosen = torch.zeros_like(attention, dtype=torch.bool)
        chosen.scatter_(1, (order[..., :salient] + begins).flatten(1), True)
        rest = order[..., salient:].sort(dim=2).values
        anchor = torch.zeros_like(chosen)
        groups: list[tuple[int, slice, Tensor]] = []
        if context and salient < per_frame:
            places = rest.gather(2, _peaks(frames, rest)) + begins
            groups = list(self._anchors(self._cuts(frame_features), places, context, per_frame))
            for image, _, own in groups:
                anchor[image, own.flatten()] = True
        chosen |= anchor
        plan = Plan.keeping(chosen) if self.ragged else Plan(slot=filled_up(chosen, attention, kept))
        if not groups:
            return plan
        alone = torch.zeros_like(chosen).scatter_(1, plan.slot, True) & ~anchor
        mix = torch.zeros(*plan.slot.shape, count, device=attention.device).scatter_(2, plan.slot[..., None], 1.0)
        features = frames.flatten(1, 2)
        for image, span, own in groups:
            rows = torch.searchsorted(plan.slot[image], own.contiguous())
            self._join(mix[image, :, span], rows, features[image, span], own - span.start, alone[image, span])
        if plan.valid is not None:
            mix.mul_(plan.valid[..., None])
        return Plan(plan.slot, mix=mix, valid=plan.valid)

    def _of_a_frame(self, layout: Layout) -> tuple[int, int]:
        """Return how many salient tokens each frame keeps, and how many it gives to anchors of its segment."""
        each = self.keep.count(layout.content) // layout.segments[0].t
        context = int(each * self.context)
        return each - context, context

    def _cuts(self, frame_features: Float[Tensor, "B T W"]) -> Bool[Tensor, "B T-1"]:
        """Mark the frames after which a segment ends."""
        alike = likeness(frame_features[:, :-1], frame_features[:, 1:])
        rank = alike.argsort(dim=1, stable=True).argsort(dim=1)
        return (rank < self.segments - 1) | (alike < self.tau)

    def _anchors(
        self, cuts: Bool[Tensor, "B _"], places: Int64[Tensor, "B T R"], context: int, per_frame: int
    ) -> Iterator[tuple[int, slice, Int64[Tensor, "A Q"]]]:
        """Yield each segment with anchors: its clip, its span of tokens, and Q anchors in each of A frames.

        `places` holds the tokens of each frame that can be anchors, the best first.
        """
        # One copy to the host: segments decide the shapes of all that follows.
        listed = cast("list[list[bool]]", cuts.tolist())  # pyright: ignore[reportUnknownMemberType]
        for image, own in enumerate(listed):
            ends = [*(number + 1 for number, cut in enumerate(own) if cut), len(own) + 1]
            for begin, end in pairwise([0, *ends]):
                frames, anchors = share(end - begin, context, self.step, places.shape[2])
                if anchors:
                    first = end - 1 - (frames - 1) * self.step
                    span = slice(begin * per_frame, end * per_frame)
                    yield image, span, places[image, first : end : self.step, :anchors]

    def _join(
        self,
        mix: Float[Tensor, "M n"],
        rows: Int64[Tensor, "A Q"],
        x: Float[Tensor, "n D"],
        anchors: Int64[Tensor, "A Q"],
        alone: Bool[Tensor, " n"],
    ) -> None:
        """Write how much of each token of a segment flows into each anchor; of tokens that stay alone, nothing.

        Args:
            mix: the map of the segment, which is changed.
            rows: the row of each anchor in the map.
            x: the features of the segment.
            anchors: their places in the segment.
            alone: which tokens stay as they are.
        """
        frames, each = anchors.shape
        target = unit_vectors(x[anchors.flatten()]).T
        blocks = row_blocks(len(x), x.shape[1] + frames * each, x)
        nearest = anchors.new_empty(len(x), frames)
        for some in blocks:
            nearest[some] = (unit_vectors(x[some]) @ target).view(-1, frames, each).argmax(dim=2)
        # An anchor joins itself, even if another one is equal.
        into = nearest.T.scatter(1, anchors, torch.arange(each, device=x.device).expand_as(anchors))
        joins = (~alone).float().expand(frames, -1)
        size = joins.new_zeros(frames, each).scatter_add_(1, into, joins)
        itself = (1 / (size + 1)).clamp(min=self.beta)
        share = ((1 - itself) / size).gather(1, into).mul_(joins)
        mix[rows.gather(1, into), torch.arange(len(x), device=x.device)] = share
        mix[rows, anchors] += itself


def _peaks(frames: Float[Tensor, "B T P D"], rest: Int64[Tensor, "B T R"]) -> Int64[Tensor, "B T R"]:
    """Return the order of some tokens of each frame by their density, a few frames at a time."""
    x, index = frames.flatten(0, 1), rest.flatten(0, 1)
    count = index.shape[1]
    blocks = row_blocks(len(x), count * (count + x.shape[2]), x)
    return torch.cat([density_peaks(Plan(slot=index[rows]).select(x[rows]), count, 4)[0] for rows in blocks]).view_as(
        rest
    )


def share(size: int, context: int, step: int, most: int) -> tuple[int, int]:
    """Return how many frames of a segment of `size` frames have anchors, and how many anchors each of them has.

    >>> share(5, 7, 3, 29), share(1, 7, 3, 29), share(4, 20, 4, 29)
    ((2, 17), (1, 7), (1, 29))
    """
    frames = -(-size // step)
    return frames, min(most, context * size // frames)
