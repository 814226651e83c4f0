"""Keep tokens at random: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.devices import constant
from foveate.methods import Method, Plan, VisualTokens, register
from foveate.numbers import SEED
from foveate.plan import SELECTED


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keep tokens at random, uniformly and without replacement: the same places in every image of one layout.

    >>> tokens = VisualTokens.of(torch.randn(2, 576, 8), (24, 24))
    >>> Random(keep=64).plan(tokens).slot.shape
    torch.Size([2, 64])
    """

    seed: Annotated[int, SEED] = 0

    fixed = True
    operations = 1 + SELECTED

    unchanged_if_all = True

    def plan(self, tokens: VisualTokens) -> Plan:
        """Choose places with the seed, and return them in raster order."""
        images, count = tokens.features.shape[:2]
        chosen = _places(self.seed, count, self.count(tokens.layout))
        return Plan(slot=chosen.to(tokens.features.device, non_blocking=True).expand(images, -1))


@constant
def _places(seed: int, count: int, kept: int) -> Int64[Tensor, " M"]:
    """Return which of `count` tokens are kept, ascending."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:kept].sort().values
