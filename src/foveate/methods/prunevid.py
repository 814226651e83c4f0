"""Merge what stands still over time, and the rest in each frame.  PruneVid, Huang et al. 2024, arXiv 2412.16117."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from jaxtyping import Bool, Float32, Int64

from foveate.methods import AUTO, Effort, KeepError, Layout, Method, Plan, Positions, VisualTokens, register
from foveate.methods.arithmetic.density import density_bytes, density_peaks
from foveate.methods.arithmetic.frames import FRAME, block_of_frames, by_frame, longest_runs, runs
from foveate.methods.arithmetic.groups import in_order
from foveate.methods.arithmetic.products import row_blocks, unit_vectors
from foveate.numbers import Between
from foveate.plan import AVERAGED

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 14
"""So many tokens or fewer are not clustered, if the content decides."""


@register("prunevid")
@dataclass(frozen=True)
class PruneVid(Method):
    """Cut a clip into segments, average what stands still in each over time, and cluster the tokens that are left.

    The means of frames are clustered around density peaks (as in `dpc-knn`), into `segments` times as many clusters as
    there are frames. Each cluster keeps its longest run of frames; the other frames join a neighbouring run. A place
    whose tokens have a mean cosine above `tau` over all pairs of a segment's frames is static: its tokens are averaged.
    The static tokens of a segment are one group, and the other tokens of each frame are another. Each group is
    clustered around density peaks by itself, and a cluster becomes its plain mean. The question isn't read.

    Budget: `auto` looks at the clip: of a group of more than 14 tokens the share `ratio` stays. A number or a fraction
    is for the whole clip. It is shared out to the groups by their size, at least one token each, so exactly that many
    stay; if too few tokens are left after averaging, the places that change most are static no longer. A budget below
    one and a half tokens per frame is refused.

    Against the authors' code: theirs divides by zero in a segment of one frame, and fails with fewer than 7 frames;
    here nothing is static in such a segment. Theirs has the static tokens of a segment before the others; here all are
    in raster order, and static ones stand in the segment's first frame. Equal densities are in token order (there: a
    little random noise). Their pruning inside the decoder is not part of this method.

    >>> tokens = VisualTokens.of(torch.randn(2, 128, 8), (8, 4, 4))
    >>> PruneVid(keep=32).plan(tokens).slot.shape, PruneVid().bounds(tokens.layout)
    (torch.Size([2, 32]), (8, 120))
    """

    # A Keep, read as in Method: numbers and text are accepted too.
    keep: Any = AUTO
    positions: Positions = "pack"
    tau: Annotated[float, Between(-1, 1)] = 0.8
    ratio: Annotated[float, Between(0, 1)] = 0.5
    segments: Annotated[float, Between(0, 1)] = 0.25
    neighbours: Annotated[int, Between(1)] = 7

    temporal = True
    adaptive = True
    paper = "arXiv 2412.16117"

    @property
    def ragged(self) -> bool:
        """Whether counts differ between clips: only if the content decides."""
        return self.keep.auto

    def count(self, layout: Layout) -> int:
        """Return `keep`, or the most tokens that can stay.

        Raises:
            KeepError: the budget is too small for all groups.
        """
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return `keep` twice, or the fewest and the most over all segments and all shares of static places."""
        (clip,) = layout.segments
        if self.keep.auto:
            return _bounds(clip.t, clip.h * clip.w, self.ratio)
        kept = int(self.keep.count(layout.content))
        least = min(clip.t + clip.t // 2, layout.content)
        if kept < least:
            raise KeepError(
                f"keep {self.keep} is {kept} of {layout.content} tokens, and {self.name} may need a token for each of "
                f"{clip.t} frames and for what stands still in each segment; keep at least {least}"
            )
        return kept, kept

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the distances inside frames, taken to be of 196 tokens."""
        each = min(tokens, 196)
        return Effort(2 * tokens * each * width + 20 * tokens * each, 64 + 48 * (tokens // each) + AVERAGED, 2)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate blocks of features, and the distances inside a frame, taken to be of 256 tokens."""
        each = min(tokens, FRAME)
        blocks = block_of_frames(tokens, width) + 4 * each * width
        return max(blocks, density_bytes(each, width, self.neighbours)) + 20 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Cut each clip into segments, then cluster the groups of each."""
        images, count = tokens.features.shape[:2]
        kept = None if self.keep.auto else self.count(tokens.layout)
        if kept == count:
            return Plan(slot=torch.arange(count, device=tokens.features.device).expand(images, -1))
        plans = [in_order(*self._groups(frames, kept)) for frames in by_frame(tokens).float()]
        counts = [plan.slot.shape[1] for plan in plans]
        if len(set(counts)) == 1:
            return Plan.batch(plans)
        slots = [torch.cat([plan.slot, plan.slot[:, -1:].expand(-1, max(counts) - size)], dim=1)
                 for plan, size in zip(plans, counts)]  # fmt: skip
        valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        groups = [plan.group for plan in plans if plan.group is not None]
        return Plan(torch.cat(slots), torch.cat(groups), valid=valid.to(tokens.features.device, non_blocking=True))

    def spans(self, frames: Float32[Tensor, "T P D"]) -> list[tuple[int, int]]:
        """Return the first frame of each segment, and one past its last."""
        wanted = max(1, int(len(frames) * self.segments))
        _, cluster = density_peaks(frames.mean(dim=1)[None], wanted, self.neighbours)
        labels = cast("list[int]", cluster[0].tolist())  # pyright: ignore[reportUnknownMemberType]
        return runs(longest_runs(labels))

    def _groups(
        self, frames: Float32[Tensor, "T P D"], kept: int | None
    ) -> tuple[Int64[Tensor, "1 M"], Int64[Tensor, "1 N"]]:
        """Return the slot of each cluster, and the cluster of each token."""
        spans, device, each = self.spans(frames), frames.device, frames.shape[1]
        static = self._static(frames, spans, kept)
        sizes = [
            size
            for (begin, end), still in zip(spans, map(int, static.sum(dim=1)))
            for size in (still, *(end - begin) * [each - still])
            if size
        ]
        quotas = iter([left(size, self.ratio) for size in sizes] if kept is None else shared(kept, sizes))
        slots: list[Tensor] = []
        group = torch.empty(frames.shape[:2], dtype=torch.int64, device=device)
        taken = 0
        for (begin, end), still in zip(spans, static):
            # The static places, once for all frames; then the others, frame by frame.
            members = [(begin, end, still.nonzero()[:, 0])]
            members += [(number, number + 1, (~still).nonzero()[:, 0]) for number in range(begin, end)]
            for first, last, places in members:
                if not len(places):
                    continue
                kept_here, own = next(quotas), places.to(device, non_blocking=True)
                means = torch.cat([x.mean(dim=0) for x in _places(frames[first:last], own)])
                centre, cluster = self._clustered(means, kept_here)
                slots.append(first * each + own[centre])
                group[first:last, own] = cluster + taken
                taken += kept_here
        return torch.cat(slots)[None], group.view(1, -1)

    def _static(
        self, frames: Float32[Tensor, "T P D"], spans: list[tuple[int, int]], kept: int | None
    ) -> Bool[Tensor, "S P"]:
        """Mark the static places of each segment, on the host; few enough that `kept` tokens are left."""
        # The sum over all pairs of frames is the square of the sum.
        pairs = torch.stack(
            [
                torch.cat([unit_vectors(x).sum(dim=0).square().sum(dim=-1) for x in _places(frames[begin:end])])
                for begin, end in spans
            ]
        ).cpu()
        length = torch.tensor([end - begin for begin, end in spans])[:, None]
        alike = torch.where(length > 1, (pairs - length) / (length * (length - 1)).clamp(min=1), -torch.inf)
        static = alike > self.tau
        if kept is not None:
            # A place that is static no longer gives a token in each frame.
            gained = (length - 1).expand_as(static)
            missing = kept - frames.shape[0] * frames.shape[1] + (gained * static).sum()
            order = torch.where(static, alike, torch.inf).flatten().argsort(stable=True)
            before = gained.flatten()[order].cumsum(0) - gained.flatten()[order]
            static = static.flatten().scatter(0, order, static.flatten()[order] & (before >= missing)).view_as(static)
        return static

    def _clustered(self, x: Float32[Tensor, "n D"], kept: int) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " n"]]:
        """Return the centre of each cluster, and the cluster of each token; each is its own if all stay."""
        if kept == len(x):
            numbers = torch.arange(kept, device=x.device)
            return numbers, numbers
        centre, cluster = density_peaks(x[None], kept, self.neighbours)
        return centre[0], cluster[0]


def _places(
    frames: Float32[Tensor, "T P D"], index: Int64[Tensor, " n"] | None = None
) -> Iterator[Float32[Tensor, "T _ D"]]:
    """Yield a few places of all frames at a time: all places, or those in `index`."""
    length, count, width = frames.shape
    for some in row_blocks(count if index is None else len(index), length * width, frames):
        yield frames[:, some if index is None else index[some]]


def left(size: int, ratio: float) -> int:
    """Return how many tokens of a group of `size` stay if the content decides."""
    return size if size <= _FEW else max(1, int(size * ratio))


def shared(kept: int, sizes: Sequence[int]) -> list[int]:
    """Share `kept` tokens out to groups by size, at least 1 and at most its size to each.

    >>> shared(6, [10, 1, 1, 4])
    [3, 1, 1, 1]
    """
    rest, room = kept - len(sizes), sum(sizes) - len(sizes)
    exact = [rest * (size - 1) for size in sizes]
    parts = [1 + (share // room if room else 0) for share in exact]
    missing = kept - sum(parts)
    # The largest remainders are rounded up.
    order = sorted(range(len(sizes)), key=lambda number: (-(exact[number] % room if room else 0), number))
    for number in order[:missing]:
        parts[number] += 1
    return parts


@functools.lru_cache(maxsize=256)
def _bounds(frames: int, places: int, ratio: float) -> tuple[int, int]:
    """Return the fewest and the most tokens of a clip, whatever its segments and its static places."""
    stay = [left(size, ratio) for size in range(places + 1)]
    fewest, most = [0], [0]
    least: dict[int, int] = {1: stay[places]}
    largest: dict[int, int] = {1: stay[places]}
    for size in range(2, frames + 1):
        ways = [stay[still] + size * stay[places - still] for still in range(places + 1)]
        least[size], largest[size] = min(ways), max(ways)
    for end in range(1, frames + 1):
        fewest.append(min(fewest[end - size] + least[size] for size in range(1, end + 1)))
        most.append(max(most[end - size] + largest[size] for size in range(1, end + 1)))
    return fewest[-1], most[-1]
