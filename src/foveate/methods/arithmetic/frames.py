"""Compare the frames of a clip, and cut it into runs of frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float, Float32, Int64

from foveate.devices import on_cpu
from foveate.methods.arithmetic.products import BLOCK_BYTES, row_blocks
from foveate.tokens import VisualTokens

if TYPE_CHECKING:
    from torch import Tensor

FRAME: Final = 256
"""Tokens of a frame, where estimates must take some number."""


def block_of_frames(tokens: int, width: int) -> int:
    """Return the bytes of features of a few frames on a CPU: those of a block, or of one frame if they are more."""
    return min(4 * tokens * width, max(BLOCK_BYTES, 4 * FRAME * width))


def compared_bytes(tokens: int, width: int) -> int:
    """Estimate the most bytes that `likeness_to_earlier` holds on a CPU, with scores and their order."""
    return 3 * 4 * min(tokens, FRAME) * width + 24 * tokens


def by_frame(tokens: VisualTokens) -> Float[Tensor, "B T P D"]:
    """Return the features of a clip frame by frame: `(B, N, D)` -> `(B, T, P, D)`, P tokens per frame."""
    (clip,) = tokens.layout.segments
    images, _, width = tokens.features.shape
    return tokens.features.reshape(images, clip.t, clip.h * clip.w, width)


def likeness(
    frames: Float[Tensor, "*frames P D"], others: Float[Tensor, "*frames P D"]
) -> Float32[Tensor, "*frames P"]:
    """Return the cosine between tokens at the same place of two frames, in float32.

    >>> likeness(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return torch.cosine_similarity(frames.float(), others.float(), dim=-1)


def likeness_to_earlier(
    frames: Float[Tensor, "B T P D"], later: range | Int64[Tensor, " n"], earlier: range | Int64[Tensor, " n"]
) -> Float32[Tensor, "B _ P"]:
    """Return the cosine between tokens of some frames and of earlier ones, in float32, a few frames at a time.

    Args:
        frames: of clips.
        later: numbers of frames.
        earlier: the number of the frame that each is compared with.

    >>> likeness_to_earlier(torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]]]), range(1, 3), range(2)).tolist()
    [[[1.0], [0.0]]]
    """
    if on_cpu(frames):
        return torch.stack([_of_clip(clip, list(map(int, later)), list(map(int, earlier))) for clip in frames])
    # A comparison copies both frames more than once.
    blocks = row_blocks(len(later), frames[:, 0].numel(), frames)
    return torch.cat([likeness(_some(frames, later[rows]), _some(frames, earlier[rows])) for rows in blocks], dim=1)


def _of_clip(frames: Float[Tensor, "T P D"], later: Sequence[int], earlier: Sequence[int]) -> Float32[Tensor, "_ P"]:
    """Compare frames of one clip, without copying them first."""
    return torch.stack([likeness(frames[one], frames[other]) for one, other in zip(later, earlier, strict=True)])


def _some(frames: Float[Tensor, "B T P D"], numbers: range | Int64[Tensor, " n"]) -> Float[Tensor, "B _ P D"]:
    """Return some frames; a range of them without copying it."""
    if isinstance(numbers, range):
        return frames[:, numbers.start : numbers.stop]
    return frames.index_select(1, numbers)


def runs(labels: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return where each run of equal labels begins, and one past its end.

    >>> runs([4, 4, 1, 4])
    [(0, 2), (2, 3), (3, 4)]
    """
    edges = [number for number in range(1, len(labels)) if labels[number] != labels[number - 1]]
    return list(pairwise([0, *edges, len(labels)]))


def longest_runs(labels: Sequence[int]) -> list[int]:
    """Let each label keep its longest runs alone, and give all other frames to the longer of the runs beside them.

    Equally long runs of a label all stay, but not runs of one frame. Gaps are filled from the first on, and what was
    filled counts as part of its run. Of equally long runs, the one before takes the gap. If no run stays, all labels
    are 0.

    >>> longest_runs([7, 7, 7, 2, 7, 3, 3])
    [7, 7, 7, 7, 7, 3, 3]
    """
    spans = runs(labels)
    longest: dict[int, int] = {}
    for begin, end in spans:
        longest[labels[begin]] = max(longest.get(labels[begin], 2), end - begin)
    kept: list[int | None] = [None] * len(labels)
    for begin, end in spans:
        if end - begin == longest[labels[begin]]:
            kept[begin:end] = labels[begin:end]
    for begin, end in runs(kept):
        if kept[begin] is None:
            before = next((span for span in runs(kept[:begin])[::-1]), (0, 0)) if begin else (0, 0)
            after = runs(kept[end:])[0] if end < len(kept) else (0, 0)
            beside = kept[begin - 1] if before[1] - before[0] >= after[1] - after[0] else kept[end]
            kept[begin:end] = [beside if begin or end < len(kept) else 0] * (end - begin)
    return [0 if label is None else label for label in kept]
