"""Correct the probabilities of many comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from scipy.stats import false_discovery_control

__all__ = ["CORRECTIONS", "benjamini_hochberg", "holm"]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return probabilities such that all below 5 % together are wrong at all with at most 5 % (Holm, 1979).

    >>> holm([0.01, 0.5]), holm([])
    ([0.02, 0.5], [])
    """
    found = [0.0] * len(probabilities)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[index]))
        found[index] = largest
    return found


def benjamini_hochberg(probabilities: Sequence[float]) -> list[float]:
    """Return probabilities such that of those below 5 % at most 5 % are wrong on average (1995), by SciPy.

    >>> benjamini_hochberg([0.01, 0.02, 0.5])
    [0.03, 0.03, 0.5]
    """
    return [float(each) for each in false_discovery_control(probabilities)] if len(probabilities) else []


CORRECTIONS: Final[dict[str, Callable[[Sequence[float]], list[float]]]] = {"holm": holm, "bh": benjamini_hochberg}
"""By the name that `compare --correct` takes."""
