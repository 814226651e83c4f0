"""Lay stages over optimiser steps, and the published schedules of stages.

LLaVolta: Chen et al., Efficient Large Multi-modal Models via Visual Context Compression, NeurIPS 2024,
arXiv 2406.20092, Table 1. Its decoder has 32 layers; here a layer is scaled to the depth of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

from foveate.errors import nearest
from foveate.schedule import scaled_layer
from foveate.train.recipe import Stage
from foveate.train.settings import DENSE, RecipeError

# (layer K of 32, stride S) of each stage; None is no compression. All stages of a schedule are equally long.
_PUBLISHED: Final[dict[str, tuple[tuple[int, int] | None, ...]]] = {
    "single": (None,),
    "two-compression": ((2, 8), None),
    "three-deeper": ((2, 8), (16, 8), None),
    "three-wider": ((2, 8), (2, 2), None),
    "four-wider-deeper": ((2, 8), (2, 2), (16, 2), None),
    "four-deeper-wider": ((2, 8), (16, 8), (16, 2), None),
    "last-stage-compression": ((2, 16), (16, 16), (16, 4)),
}

PUBLISHED: Final[tuple[str, ...]] = tuple(_PUBLISHED)
"""The names of the published schedules, in the order of their table."""


def published(name: str, layers: int) -> tuple[Stage, ...]:
    """Return the stages of a published schedule for a decoder of `layers` layers.

    Raises:
        RecipeError: no schedule has the name.

    >>> [stage.spec for stage in published("last-stage-compression", 32)]
    ['pool:0.0625@2', 'pool:0.0625@16', 'pool:0.25@16']
    >>> [stage.spec for stage in published("last-stage-compression", 12)]
    ['pool:0.0625@1', 'pool:0.0625@6', 'pool:0.25@6']
    """
    if name not in _PUBLISHED:
        raise RecipeError(f'no published schedule is called "{name}"; {nearest(name, PUBLISHED)}')
    parts = _PUBLISHED[name]
    share = Fraction(1, len(parts))
    specs = [DENSE if part is None else f"pool:{1 / part[1]}@{scaled_layer(part[0], layers)}" for part in parts]
    return tuple(Stage(share=share, spec=spec) for spec in specs)


@dataclass(frozen=True)
class Timetable:
    """Which spec is trained under at each optimiser step.

    Attributes:
        steps: optimiser steps of the whole run.
        specs: of each stage, in order.
        starts: the first step of each stage, counted from 0.
    """

    steps: int
    specs: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, stages: tuple[Stage, ...], steps: int) -> Timetable:
        """Lay stages over `steps` steps; a boundary that falls between two steps goes to the nearest, halves up.

        Raises:
            RecipeError: a stage gets no step.

        >>> Timetable.of(published("three-deeper", 32), 100).starts
        (0, 33, 67)
        """
        edges, reached = [0], Fraction(0)
        for stage in stages:
            reached += stage.share
            edges.append(math.floor(reached * steps + Fraction(1, 2)))
        for number, (begin, end) in enumerate(pairwise(edges), start=1):
            if begin == end:
                raise RecipeError(
                    f"stage {number} ({stages[number - 1].spec}) has no step: {stages[number - 1].share} of {steps} "
                    "steps; train longer or leave it out"
                )
        return cls(steps, tuple(stage.spec for stage in stages), tuple(edges[:-1]))

    def stage(self, step: int) -> int:
        """Return the number of the stage of a step; both are counted from 0."""
        return sum(start <= step for start in self.starts) - 1

    def length(self, stage: int) -> int:
        """Return how many steps a stage has."""
        return (*self.starts, self.steps)[stage + 1] - self.starts[stage]


def ending_warning(stages: tuple[Stage, ...], test: str) -> str | None:
    """Write a warning if the last stage is another setting than the model will be used in; else return None.

    >>> ending_warning(published("two-compression", 32), "dense") is None
    True
    """
    last = stages[-1].spec
    if last == test:
        return None
    return (
        f"the last stage trains under {last}, and the model will be tested under {test} (the recipe's test). A model "
        "must see its test setting at the end: trained under compression to the last step and tested with all tokens, "
        "LLaVA-1.5-7B fell from 62.6 to 55.9 on GQA and from 65.3 to 47.4 on MMBench (LLaVolta, arXiv 2406.20092, "
        "Table 9). Add a last stage, or set test"
    )
