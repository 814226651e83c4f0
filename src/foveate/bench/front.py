"""The Pareto front of configurations: what nothing else beats in both time and accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["front"]


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return the names on the Pareto front: nothing else is both at least as fast and at least as accurate.

    Args:
        points: time and accuracy by name; of several equal points the first is on the front.

    Returns:
        The names, the fastest first.

    >>> front({"dense": (1.0, 0.9), "slow": (1.2, 0.9), "half": (0.5, 0.85), "bad": (0.6, 0.8)})
    ('half', 'dense')
    """
    found: list[str] = []
    best = -math.inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            found.append(name)
    return tuple(found)
