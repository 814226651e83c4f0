"""Test whether more answers got better than worse: McNemar's test, for each skill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

__all__ = ["Changes", "changes"]


@dataclass(frozen=True)
class Changes:
    """How answers changed.

    Attributes:
        better: questions with a higher score.
        worse: questions with a lower one.
        probability: of so uneven a split, or a more uneven one, if both were equally probable.
    """

    better: int
    worse: int
    probability: float


def changes(scores: Sequence[float], reference: Sequence[float]) -> Changes:
    """Return how many scores rose and fell against a reference, with the exact test (McNemar, 1947).

    The test takes questions as independent; where one image has several, the permutation test is the one to trust.
    For scores between 0 and 1 this is the sign test.

    >>> changes([1, 1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1])
    Changes(better=5, worse=1, probability=0.21875)
    """
    better = sum(one > other for one, other in zip(scores, reference, strict=True))
    worse = sum(one < other for one, other in zip(scores, reference, strict=True))
    moved = better + worse
    return Changes(better, worse, float(binomtest(better, moved, 0.5).pvalue) if moved else 1.0)
