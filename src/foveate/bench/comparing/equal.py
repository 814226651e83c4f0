"""Compare at equal cost: with a mixture of the two budgets of a method whose cost lies around.

Whoever answers a share w of all questions with one budget and the rest with the next one pays exactly the mean of their
costs, and gets the mean of their scores. So for each cost between two measured ones there is a configuration of the
other method that costs the same, and its expected score of each question is known: differences stay paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

__all__ = ["COSTS", "Mixture", "cost_of", "mixture"]

COSTS: Final = {
    "tokens": "visual tokens after the last step",
    "layers": "visual tokens averaged over decoder layers",
    "flops": "FLOPs of the prefill",
    "time": "measured time of a call",
}
"""By the name that `compare --equal` takes: what is equal."""


@dataclass(frozen=True)
class Mixture:
    """Two budgets of a method that together cost what another configuration costs.

    Attributes:
        small: the cheaper configuration.
        large: the other one; the same if its cost is the wanted one.
        share: of the questions that `large` answers.
    """

    small: str
    large: str
    share: float

    def scores(self, answers: Mapping[str, Sequence[float]]) -> list[float]:
        """Return the expected score of each question."""
        small, large = (np.asarray(answers[name], dtype=np.float64) for name in (self.small, self.large))
        return [float(each) for each in (1 - self.share) * small + self.share * large]


def cost_of(row: Mapping[str, Any], what: str) -> float | None:
    """Return what a configuration costs, from its row of metrics.json; None if the run doesn't say it."""
    if what == "time":
        return row["time_ms"]["total"]
    if what == "flops":
        return row.get("flops")
    return row["tokens"]["after" if what == "tokens" else "mean_over_layers"]


def mixture(costs: Mapping[str, float], wanted: float) -> Mixture | None:
    """Return the mixture of neighbours that costs this much; None if all cost more, or all less.

    Args:
        costs: by configuration.
        wanted: the cost.

    >>> mixture({"pool:16": 16, "pool:64": 64, "dense": 576}, 40)
    Mixture(small='pool:16', large='pool:64', share=0.5)
    """
    below = [name for name in costs if costs[name] <= wanted]
    above = [name for name in costs if costs[name] >= wanted]
    if not below or not above:
        return None
    small, large = max(below, key=costs.__getitem__), min(above, key=costs.__getitem__)
    width = costs[large] - costs[small]
    return Mixture(small, large, (wanted - costs[small]) / width if width else 0.0)
