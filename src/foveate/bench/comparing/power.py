"""How many questions show a difference?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtri

from foveate.bench.comparing.resampling import sums_of

__all__ = ["questions_needed"]


def questions_needed(
    scores: Sequence[float],
    reference: Sequence[float],
    clusters: Sequence[Hashable],
    difference: float = 0.01,
    power: float = 0.8,
) -> int | None:
    """Return how many questions like these show a difference with 5 % significance and this power.

    N = (z(0.975) + z(power))^2 * V / difference^2, with V the variance of one question's paired difference times the
    design effect of several questions about one image, as these answers have them.

    Args:
        scores: one per question.
        reference: the same questions under the other configuration.
        clusters: the image of each question.
        difference: between mean scores: 0.01 is one point.
        power: how probably it is to be seen, between 0 and 1.

    Returns:
        The number of questions; None if no score differs, which says nothing about the variance.

    >>> questions_needed([1, 0] * 50, [1, 1] * 50, range(100))
    19821
    """
    x = np.subtract(scores, reference, dtype=np.float64)
    sums, sizes = sums_of(x, clusters)
    if not x.any() or len(sums) < 2:
        return None
    residuals = sums - sizes * x.mean()
    robust = len(sums) / (len(sums) - 1) * float((residuals**2).sum()) / len(x)
    return math.ceil(float((ndtri(0.975) + ndtri(power)) ** 2) * robust / difference**2)
