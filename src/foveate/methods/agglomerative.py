"""Merge the two closest clusters repeatedly.  Ward 1963; a clusterer for Cluster & Aggregate (our reading)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from foveate.methods import Effort, Method, Plan, Positions, VisualTokens, register
from foveate.methods.arithmetic.groups import in_order, middles
from foveate.methods.arithmetic.linkage import MOST_BYTES, ROUNDS, clusters, distance_bytes
from foveate.methods.arithmetic.products import WHOLE
from foveate.methods.arithmetic.ward import ward_bytes
from foveate.plan import AVERAGED


@register("agglomerative")
@dataclass(frozen=True)
class Agglomerative(Method):
    """Cluster the tokens hierarchically and keep the plain mean of each cluster, in raster order.

    Every token begins as a cluster. "ward" merges the two clusters whose merge adds least to the squared distances
    between tokens and their cluster's mean. "average" merges the two whose tokens are nearest to each other on
    average. The method uses no random numbers: the same tokens always give the same clusters. It reads only the
    features, in float32, and not the question. It keeps exactly the budget. The slot of a cluster is the member
    nearest to the cluster's mean place.

    The method follows no paper; it is a deterministic alternative to `cluster`. All pairs of clusters that are each
    other's nearest merge at once. With these two linkages the tree is the same as with one merge at a time. The tree
    is then cut so that only its lowest merges are done.

    Cost: on a CPU the N (N - 1) / 2 distances in float64, twice, and SciPy's nearest-neighbour chain. On an accelerator
    one matrix of N x N distances, and passes over it in rounds; the number of rounds depends on the content: few if
    many pairs are each other's nearest, N at worst. There the host waits after every sixth round. Where distances take
    more than 2 GB (about 15,000 tokens on a CPU, 10,000 elsewhere), "ward" keeps means of clusters in their place, and
    computes 3 to 6 rows of distances per token again; "average" refuses. With thousands of tokens the method takes more
    than a hundredth of the prefill that it saves on a CPU: `docs/speed.md`.

    >>> features = torch.tensor([[[0.0], [0.2], [5.0], [5.1], [9.0]]])
    >>> plan = Agglomerative(keep=3).plan(VisualTokens.of(features, (1, 5)))
    >>> plan.slot.tolist(), plan.group.tolist()
    ([[0, 2, 4]], [[0, 0, 1, 1, 2]])
    """

    positions: Positions = "pack"
    linkage: Literal["ward", "average"] = "ward"

    unchanged_if_all = True

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the distances, in float64 and the copy of SciPy; with too many of them, the means of clusters."""
        distances = distance_bytes(tokens, on_cpu=True)
        if distances > MOST_BYTES and self.linkage == "ward":
            return ward_bytes(tokens, width)
        return distances + (4 * tokens * width if tokens <= WHOLE else 0)

    def check_memory(self, tokens: int, width: int) -> None:
        """Leave it to `plan`, where the device decides."""

    def plan(self, tokens: VisualTokens) -> Plan:
        """Build the tree of all tokens and cut it into the clusters of the budget."""
        kept = self.count(tokens.layout)
        if torch.compiler.is_compiling():
            # How many rounds it takes depends on the content, so it is recorded as one operation.
            from foveate.methods.arithmetic.recorded import clusters_at_once

            group = clusters_at_once(tokens.features, self.linkage, kept)
        else:
            group = clusters(tokens.features, self.linkage, kept)
        return in_order(middles(group, kept), group)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: the matrix of distances, then about 24 rounds, each over a smaller matrix."""
        rounds = 4 * ROUNDS
        return Effort(2 * tokens**2 * width + 60 * tokens**2, 50 + 38 * rounds + AVERAGED, rounds // ROUNDS)
