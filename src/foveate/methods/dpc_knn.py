"""Cluster tokens around density peaks.  As in PruneVid, Huang et al. 2024, arXiv 2412.16117."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods import Effort, FoveateError, Method, Plan, Positions, VisualTokens, register
from foveate.methods.arithmetic.density import density_bytes, density_peaks
from foveate.methods.arithmetic.groups import in_order
from foveate.plan import AVERAGED


@register("dpc-knn")
@dataclass(frozen=True)
class DpcKnn(Method):
    """Cluster tokens around density peaks and keep the plain mean of each cluster, in raster order.

    A token is a centre if many tokens are similar to it and no denser token is near. The method reads only the
    features, in float32, and not the question. It keeps exactly the budget. The slot of a cluster is its centre.
    `neighbours` is the number of tokens that a density is computed over, the token itself included.

    Differences from the authors' code: clusters are in raster order (there: by falling score). Equal densities are
    ordered by token order (there: by a little random noise). PruneVid clusters frames, static tokens and dynamic
    tokens separately; this is its clustering alone, over all tokens of an image.

    Cost: one N x N matrix of distances, and a few passes over it. With thousands of tokens the method takes more than a
    hundredth of the prefill that it saves on a CPU: `docs/speed.md`.

    >>> import torch
    >>> features = torch.tensor([[[0.0], [0.1], [5.0], [5.2], [5.3]]])
    >>> plan = DpcKnn(keep=2, neighbours=2).plan(VisualTokens.of(features, (1, 5)))
    >>> plan.slot.tolist(), plan.size().tolist()
    ([[0, 3]], [[2, 3]])
    """

    positions: Positions = "pack"
    neighbours: int = 7

    paper = "arXiv 2412.16117"
    unchanged_if_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise FoveateError(f"neighbours={self.neighbours}: a density is over at least 1 token, the token itself")

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the distances of all pairs, and a block of them once more."""
        return density_bytes(tokens, width, self.neighbours)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Cluster the tokens around their density peaks."""
        return in_order(*density_peaks(tokens.features, self.count(tokens.layout), self.neighbours))

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: the matrix of distances and a few passes over it."""
        return Effort(2 * tokens**2 * width + 20 * tokens**2, 51 + AVERAGED)
