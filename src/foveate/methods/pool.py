"""Average neighbours in raster order.  Visual Context Compressor, Chen et al. 2024, arXiv 2406.20092."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from foveate.methods import Effort, Method, Plan, VisualTokens, register
from foveate.methods.arithmetic.grids import averaging_operations, axis

if TYPE_CHECKING:
    import numpy.typing as npt


@register("pool")
@dataclass(frozen=True)
class Pool(Method):
    """Average runs of neighbouring tokens in raster order (1-D pooling; a run may go on in the next row).

    If the count divides, all runs are equally long. Otherwise `remainder` decides. With "spread" every token counts,
    and the lengths of runs differ by one. With "drop", as in the authors' code, all runs have the length N // kept, and
    the tokens after the last run are lost: few if many tokens are pooled, but keeping 300 of 576 keeps the first 300.
    A pooled token takes the middle place of its run, the floor of the mean position, as in the paper. (The authors
    compute this mean in float16, so theirs is off by one or two past position 1024; here it is exact.)

    The authors pool inside the decoder. Their layer 16 and stride 4 of 32 layers are `pool:0.25@16`. Their nested
    pooling is `pool:0.5@4,12,24`; each step keeps half of the tokens that arrive.

    >>> tokens = VisualTokens.of(torch.arange(8.0).view(1, 8, 1), (2, 4))
    >>> plan = Pool(keep=2).plan(tokens)
    >>> plan.apply(tokens.features).flatten().tolist(), plan.slot.tolist()
    ([1.5, 5.5], [[1, 5]])
    >>> Pool(keep=3, remainder="drop").plan(tokens).group.tolist()
    [[0, 0, 1, 1, 2, 2, -1, -1]]
    """

    remainder: Literal["spread", "drop"] = "spread"

    paper = "arXiv 2406.20092"
    unchanged_if_all = True
    fixed = True

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate sums of all features."""
        return Effort(2 * tokens * width, averaging_operations(tokens, self.keep.count(tokens)))

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the cell of each token, four times."""
        return 33 * tokens

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to average each run of neighbours."""
        images, count = tokens.features.shape[:2]
        kept, device = self.count(tokens.layout), tokens.features.device
        group, middle = _runs(count, kept, self.remainder)
        # Copies: whoever changes a plan must not change what is remembered.
        slot, group = (
            torch.from_numpy(each).to(device, non_blocking=True, copy=True).expand(images, -1)  # pyright: ignore[reportUnknownMemberType]
            for each in (middle, group)
        )
        if count % kept:
            return Plan(slot, group)
        return Plan.averaging(slot, group, (1, count // kept), columns=count)


@functools.lru_cache(maxsize=256)
def _runs(count: int, kept: int, remainder: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the run of each token (-1 for none) and the middle place of each run; don't change them in place."""
    if remainder == "spread":
        return axis(count, kept)
    run = count // kept
    whole, middle = axis(kept * run, kept)
    return np.concatenate([whole, np.full(count - kept * run, -1)]), middle
