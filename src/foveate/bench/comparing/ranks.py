"""How stable is an order of configurations: over images, and over runs with other seeds?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from scipy.stats import kendalltau, rankdata

from foveate.bench.comparing.resampling import sums_of

__all__ = ["Rank", "agreement", "ranks"]

_DRAWS: Final = 2_000
_SEED: Final = 0


@dataclass(frozen=True)
class Rank:
    """The place of a configuration among others; 1 has the highest score, equal ones share their mean.

    Attributes:
        value: on these images.
        low: of 95 % of the draws of images, the best.
        high: the worst.
        first: in what share of the draws it is the best, alone or with others.
    """

    value: float
    low: float
    high: float
    first: float


def ranks(scores: Mapping[str, Sequence[float]], clusters: Sequence[Hashable]) -> dict[str, Rank]:
    """Return the place of each configuration, and how it moves when images are drawn again.

    Args:
        scores: by name, one per question, of the same questions.
        clusters: the image of each question.

    >>> found = ranks({"good": [1] * 20, "bad": [0] * 20}, range(20))
    >>> found["good"], found["bad"].value
    (Rank(value=1.0, low=1.0, high=1.0, first=1.0), 2.0)
    """
    sums = np.stack([sums_of(np.asarray(own, dtype=np.float64), clusters)[0] for own in scores.values()])
    _, sizes = sums_of(np.zeros(len(clusters)), clusters)
    drawn = np.random.default_rng(_SEED).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=_DRAWS)
    means = (drawn @ sums.T) / (drawn @ sizes)[:, None]
    places = rankdata(-means, axis=1)
    own = rankdata(-sums.sum(axis=1))
    low, high = np.quantile(places, (0.025, 0.975), axis=0)
    first = (means >= means.max(axis=1, keepdims=True) - 1e-12).mean(axis=0)
    return {name: Rank(float(own[n]), float(low[n]), float(high[n]), float(first[n])) for n, name in enumerate(scores)}


def agreement(orders: Sequence[Mapping[str, float]]) -> float | None:
    """Return how alike several orders are: Kendall's tau, mean over pairs; 1 is the same order, 0 none.

    Args:
        orders: accuracy by configuration, of runs with other seeds; what they don't share is left out.

    Returns:
        The mean; None with fewer than two orders or configurations, or where all of one are equal.

    >>> agreement([{"a": 0.9, "b": 0.5, "c": 0.1}, {"a": 0.8, "b": 0.2, "c": 0.4}])
    0.333...
    """
    shared = [name for name in orders[0] if all(name in each for each in orders)] if orders else []
    if len(orders) < 2 or len(shared) < 2:
        return None
    found: list[Any] = [
        kendalltau([one[name] for name in shared], [other[name] for name in shared])
        for one, other in combinations(orders, 2)
    ]
    taus = [float(each.statistic) for each in found]
    return None if any(np.isnan(taus)) else float(np.mean(taus))
