"""Compute 95 % intervals of scores over clustered questions: those about one image are not independent.

Scores are between 0 and 1: right or wrong, or something between. Three facts decide the method.

* Questions about one image rise and fall together, so they are counted by their effective number: N over the design
  effect, the ratio of the cluster-robust variance to that of N independent questions (Kish, Survey sampling, 1965;
  Miller, Adding error bars to evals, 2024).
* There may be few images, so quantiles are those of Student's t; its degrees of freedom are the images less one.
* Scores may be nearly all equal, where the textbook interval is too narrow or has no width. So a few questions are
  added whose scores are as far apart as can be (Agresti and Coull, 1998, for a share; Agresti and Min, 2005, for a
  paired difference).

`tests/bench/test_coverage.py` simulates how often the intervals hold the true value.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import stdtrit

__all__ = ["FEWEST_IMAGES", "Interval", "difference_interval", "mean_interval", "student_quantile", "value_interval"]

FEWEST_IMAGES: Final = 3
"""With fewer images there is no interval: the quantile for two is 12.7 standard errors, which says nothing."""

_SHARE: Final = ((0.0, 2.0), (1.0, 2.0))
"""Scores and weights of the questions that Agresti and Coull add to a share: two wrong ones, two right ones."""
_DIFFERENCE: Final = ((-1.0, 0.5), (0.0, 1.0), (1.0, 0.5))
"""Those that Agresti and Min add to a paired difference: a half lost, a half won, one unchanged."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval; the bounds are None if there are too few images for one."""

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the interval as JSON data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the mean score with an Agresti-Coull interval for the effective number of questions.

    Args:
        scores: one per question, from 0 to 1.
        clusters: the image of each question.

    Raises:
        ValueError: there are no scores, one lies outside its range, or their number isn't that of `clusters`.

    >>> mean_interval([1, 0, 1, 1], "aabc").value
    0.75
    >>> mean_interval([1, 0, 1, 1], "aabb").low is None
    True
    """
    x, index = _read(scores, clusters, 0.0)
    return _adjusted(x, index, x if x.mean() < 0.5 else 1 - x, _SHARE, 0.0)


def difference_interval(scores: Sequence[float], reference: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the mean paired difference of scores, `scores` minus `reference`, with an Agresti-Min interval.

    If no score differs, the interval is what so many images can't rule out: if a larger share of images had changes,
    none of these would show one with less than 5 % probability (for N images about 3 / N, the rule of three).

    Args:
        scores: one per question, from 0 to 1.
        reference: the same questions under the other configuration.
        clusters: the image of each question.

    Raises:
        ValueError: there are no scores, a difference lies outside -1 to 1, or numbers of items differ.

    >>> difference_interval([1, 0, 1, 1], [1, 1, 1, 1], "aabc").value
    -0.25
    >>> same = difference_interval([1, 0] * 30, [1, 0] * 30, [*range(30)] * 2)
    >>> round(same.low, 3), same.value, round(same.high, 3)
    (-0.095, 0.0, 0.095)
    """
    if len(scores) != len(reference):
        raise ValueError(f"{len(scores)} scores and {len(reference)} of the reference; there must be as many")
    differences = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    x, index = _read(differences, clusters, -1.0)
    found = _adjusted(x, index, np.abs(x), _DIFFERENCE, -1.0)
    if x.any() or found.low is None:
        return found
    bound = 1 - 0.05 ** (_design_effect(x, index, 0.0, x) / len(x))
    return Interval(0.0, -bound, bound)


def value_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the mean of values of any size, such as token counts, with a cluster-robust t interval.

    Args:
        values: one per question.
        clusters: the image of each question.

    Raises:
        ValueError: there are no values, one is not finite, or their number isn't that of `clusters`.

    >>> value_interval([100, 120, 110, 130], "abcd").value
    115.0
    """
    x, index = _read(values, clusters, -math.inf)
    value, variance, count = _clustered(x, index)
    if count < FEWEST_IMAGES:
        return Interval(value, None, None)
    half = student_quantile(0.975, count - 1) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    Args:
        probability: between 0 and 1.
        degrees: of freedom, at least 1.

    >>> round(student_quantile(0.975, 49), 4)
    2.0096
    """
    if degrees < 1:
        raise ValueError(f"a t distribution has at least one degree of freedom, not {degrees}")
    return float(stdtrit(degrees, probability))


def _read(
    values: Sequence[float] | Float64[np.ndarray, " N"], clusters: Sequence[Hashable], least: float
) -> tuple[Float64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Return the values, and the number of each value's cluster."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    x = np.asarray(values, dtype=np.float64)
    if not len(x) or len(x) != len(index):
        raise ValueError(f"{len(x)} values and {len(index)} clusters; there must be one cluster per value, and a value")
    most = math.inf if math.isinf(least) else 1.0
    if not (np.isfinite(x).all() and x.min() >= least and x.max() <= most):
        raise ValueError(f"a value lies outside {least:g} to {most:g}, or is not finite")
    return x, index


def _clustered(x: Float64[np.ndarray, " N"], index: Int64[np.ndarray, " N"]) -> tuple[float, float, int]:
    """Return the mean, its cluster-robust variance, and the number of clusters.

    V = G / (G - 1) * sum over clusters of (sum over its questions of (x - mean))^2 / N^2.
    """
    mean = float(x.mean())
    count = int(index.max()) + 1
    if count < 2:
        return mean, 0.0, count
    sums = np.bincount(index, weights=x - mean, minlength=count)
    return mean, float(count / (count - 1) * (sums**2).sum() / len(x) ** 2), count


def _adjusted(
    x: Float64[np.ndarray, " N"],
    index: Int64[np.ndarray, " N"],
    events: Float64[np.ndarray, " N"],
    added: Sequence[tuple[float, float]],
    least: float,
) -> Interval:
    """Return a t interval of the mean after adding questions of extreme scores.

    Args:
        x: one value per question.
        index: its cluster.
        events: per question, how much of the rarer outcome it has, or how much it changed.
        added: values of the added questions, and how often each is added.
        least: the smallest possible value; the largest is 1.
    """
    value, variance, count = _clustered(x, index)
    if count < FEWEST_IMAGES:
        return Interval(value, None, None)
    size = len(x) / _design_effect(x, index, variance, events)
    weight = size + sum(often for _, often in added)
    mean = (size * value + sum(each * often for each, often in added)) / weight
    square = (size * float((x**2).mean()) + sum(each**2 * often for each, often in added)) / weight
    half = student_quantile(0.975, count - 1) * math.sqrt(max(0.0, square - mean**2) / weight)
    # The value itself is inside, also where shrinking moved the centre away from it.
    return Interval(value, max(least, min(value, mean - half)), min(1.0, max(value, mean + half)))


def _design_effect(
    x: Float64[np.ndarray, " N"],
    index: Int64[np.ndarray, " N"],
    variance: float,
    events: Float64[np.ndarray, " N"],
) -> float:
    """Return by how much clusters multiply the variance of the mean, at least 1.

    Clusters without an event don't tell how alike the questions of one are. So the estimate weighs as much as there are
    clusters with events, by their effective number, and is averaged with the largest design effect, that of clusters
    whose questions are all alike, which weighs as much as one cluster.
    """
    sizes = np.bincount(index)
    largest = float((sizes**2).sum()) / len(x)
    spread = float(x.var())
    # Rounding leaves a little where all values are equal.
    if spread < 1e-12:
        return largest
    found = max(1.0, variance * (len(sizes) - 1) / len(sizes) * len(x) / spread)
    own = np.bincount(index, weights=events)
    weight = float(own.sum() ** 2 / (own**2).sum()) if own.any() else 0.0
    return (weight * found + max(found, largest)) / (weight + 1)
