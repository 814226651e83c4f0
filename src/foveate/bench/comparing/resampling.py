"""Test paired differences by drawing images again, and by exchanging what two configurations scored on one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from scipy.stats import bootstrap, permutation_test

from foveate.bench.statistics import FEWEST_IMAGES, Interval

__all__ = ["bootstrap_interval", "permutation_probability", "sums_of"]

_DRAWS: Final = 9_999
_SEED: Final = 0


def bootstrap_interval(
    scores: Sequence[float], reference: Sequence[float], clusters: Sequence[Hashable], draws: int = _DRAWS
) -> Interval:
    """Return the mean paired difference with the 95 % percentile interval of the bootstrap over images.

    Images are drawn with all their questions (Efron and Tibshirani, An introduction to the bootstrap, 1993, Sections
    8.3 and 13.3). The seed is fixed, so the same answers give the same interval.

    Args:
        scores: one per question.
        reference: the same questions under the other configuration.
        clusters: the image of each question.
        draws: how many times images are drawn.

    >>> found = bootstrap_interval([1, 0, 1, 1] * 10, [1, 1, 1, 1] * 10, [*range(20)] * 2)
    >>> found.value, found.low < -0.1, found.high > -0.4
    (-0.25, True, True)
    """
    sums, sizes = sums_of(np.subtract(scores, reference), clusters)
    value = float(sums.sum() / sizes.sum())
    if len(sums) < FEWEST_IMAGES:
        return Interval(value, None, None)
    if not sums.any():
        return Interval(value, value, value)

    def mean(sums: Any, sizes: Any, axis: int = -1) -> Any:
        return sums.sum(axis=axis) / sizes.sum(axis=axis)

    draw: Any = bootstrap  # Its parameter random_state has another name in stubs.
    found = draw(
        (sums, sizes),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=draws,
        batch=500,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def permutation_probability(
    scores: Sequence[float], reference: Sequence[float], clusters: Sequence[Hashable], draws: int = _DRAWS
) -> float:
    """Return how probable a mean difference at least as large in size is if the two configurations were the same.

    What both scored on an image, all questions together, is exchanged or not (Fisher's test of paired samples). With
    few images all exchanges are tried, so the result is exact; else `draws` of them, with a fixed seed.

    >>> round(permutation_probability([1] * 6, [0] * 6, range(6)), 5)
    0.03125
    """
    sums, _ = sums_of(np.subtract(scores, reference), clusters)
    if not sums.any():
        return 1.0

    def total(x: Any, y: Any, axis: int = -1) -> Any:
        return (x - y).sum(axis=axis)

    draw: Any = permutation_test
    found = draw(
        (sums, np.zeros_like(sums)),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=500,
        random_state=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def sums_of(
    values: Float64[np.ndarray, " N"], clusters: Sequence[Hashable]
) -> tuple[Float64[np.ndarray, " G"], Float64[np.ndarray, " G"]]:
    """Return the sum of values and their number for each cluster."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(each, len(numbers)) for each in clusters], dtype=np.int64)
    x = np.asarray(values, dtype=np.float64)
    return np.bincount(index, weights=x), np.bincount(index).astype(np.float64)
