"""Keep tokens at random: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from foveate.methods import Method, Plan, VisualTokens, register
from foveate.numbers import SEED
from foveate.plan import SELECTED


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keep tokens at random, uniformly and without replacement: the same places in every image of one layout.

    >>> import torch
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
        from foveate.methods.arithmetic import recorded

        images, count = tokens.features.shape[:2]
        chosen = recorded.places(self.seed, count, self.count(tokens.layout))
        return Plan(slot=chosen.to(tokens.features.device, non_blocking=True).expand(images, -1))
