"""Compute confidence intervals of means over clustered questions: those about one image are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval; the bounds are None where one cluster gives none."""

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the interval as JSON data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(right: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the share of right answers with a Wilson interval for the effective number of questions.

    The effective number is that of independent questions with the same variance, p (1 - p) / V, where V is
    cluster-robust; at most the real number. If all or none are right, V is zero, and each cluster counts once.

    Args:
        right: one 0 or 1 per question.
        clusters: the image of each question.

    >>> mean_interval([1, 0, 1, 1], "aabb").value
    0.75
    """
    share, variance, count = _clustered(right, clusters)
    if count < 2:
        return Interval(share, None, None)
    spread = share * (1 - share)
    size = min(float(len(right)), spread / variance) if variance > 0 else float(len(right) if spread else count)
    quantile = student_quantile(0.975, count - 1)
    centre = (share + quantile**2 / (2 * size)) / (1 + quantile**2 / size)
    half = quantile / (1 + quantile**2 / size) * math.sqrt(spread / size + quantile**2 / (4 * size**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def difference_interval(right: Sequence[float], reference: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the paired difference of two shares of right answers, `right` minus `reference`.

    The interval is value +- t standard errors, cluster-robust, with one degree of freedom less than there are
    clusters. If all differences are equal, its width is the smallest that this number of clusters can rule out.

    Args:
        right: one 0 or 1 per question.
        reference: the same questions under the other configuration.
        clusters: the image of each question.

    >>> difference_interval([1, 0, 1, 1], [1, 1, 1, 1], "aabb").value
    -0.25
    """
    differences = [float(a) - float(b) for a, b in zip(right, reference, strict=True)]
    value, variance, count = _clustered(differences, clusters)
    if count < 2:
        return Interval(value, None, None)
    half = student_quantile(0.975, count - 1) * math.sqrt(variance)
    if len(set(differences)) == 1:
        half = 1 - 0.025 ** (1 / count)
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def _clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Return the mean, its cluster-robust variance, and the number of clusters.

    V = G / (G - 1) * sum over clusters of (sum over its questions of (x - mean))^2 / N^2.
    """
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    x = np.asarray(values, dtype=np.float64)
    if not len(x) or len(x) != len(index):
        raise ValueError(f"{len(x)} values and {len(index)} clusters; there must be one cluster per value, and a value")
    mean = float(x.mean())
    count = len(numbers)
    if count < 2:
        return mean, 0.0, count
    sums = np.bincount(index, weights=x - mean, minlength=count)
    return mean, float(count / (count - 1) * (sums**2).sum() / len(x) ** 2), count


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
