"""Build Ward's hierarchy from the means of clusters, in memory that grows with N and not with its square."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float32, Int64

from foveate.errors import FoveateError
from foveate.methods.arithmetic.products import lengths, row_blocks

if TYPE_CHECKING:
    from torch import Tensor

_COMPACTED = 0.75
"""The share of remaining clusters below which the others are removed from memory."""
_BLOCK_BYTES = 2**25
"""Bytes of the heights that are computed at once."""
_FLOAT32 = 4


def ward_tree(features: Float32[Tensor, "N D"]) -> tuple[Int64[Tensor, " nodes"], Float32[Tensor, " nodes"]]:
    """Return Ward's whole hierarchy of the tokens of one image.

    The height of a merge is what it adds to the squared distances between tokens and their cluster's mean. It follows
    from the means and sizes of the two clusters, so no distances are kept. All pairs of clusters that are each other's
    nearest merge; with Ward's linkage, the tree is then the same as with one merge at a time. A cluster's nearest stays
    its nearest until that one merges, and its next nearest is no nearer. So a round looks for the nearest of a few
    clusters only: of those that may have the nearest of all. In practice 3 to 6 searches per token are needed.

    Returns:
        `(2N,)` int64, the parent of each node, and `(2N,)` float32, the height at which it was made. Nodes 0 to N - 1
        are tokens. Nodes N to 2N - 2 are merges, numbered after the nodes that they merge. Node 2N - 1 stands for no
        node.

    Raises:
        FoveateError: the features hold NaN or infinity.

    >>> parent, height = ward_tree(torch.tensor([[0.0], [1.0], [5.0]]))
    >>> parent.tolist(), [round(each, 2) for each in height.tolist()]
    ([3, 3, 4, 4, 4, 5], [0.0, 0.0, 0.0, 0.5, 13.5, 0.0])
    """
    clusters = _Clusters(features)
    while clusters.left > 1:
        clusters.search()
        clusters.merge()
    return clusters.parent, clusters.height


class _Clusters:
    """The clusters that remain, and the nearest other cluster of each, as far as it is known."""

    def __init__(self, features: Float32[Tensor, "N D"]) -> None:
        count, device = len(features), features.device
        self.left = self._made = count
        self.parent = torch.arange(2 * count, device=device)
        self.height = features.new_zeros(2 * count)
        # Small means keep small distances exact.
        self._mean = features - features.mean(dim=0)
        self._square = lengths(self._mean).square_()
        if not bool(self._square.isfinite().all()):
            raise FoveateError("agglomerative finds no two nearest clusters: the features hold NaN or infinity")
        self._size = features.new_ones(count)
        self._node = torch.arange(count, device=device)
        self._alive = torch.ones(count, dtype=torch.bool, device=device)
        self._mate = torch.zeros_like(self._node)
        self._known = torch.zeros_like(self._alive)
        # The height of the merge with the nearest; less, if the nearest isn't known any more.
        self._near = features.new_zeros(count)

    def search(self) -> None:
        """Find the nearest of clusters that may have the nearest of all."""
        wanted = (self._alive & ~self._known).nonzero()[:, 0]
        if not len(wanted):
            return
        most = max(64, _BLOCK_BYTES // (_FLOAT32 * len(self._mean)))
        if len(wanted) > most:
            wanted = wanted[self._near[wanted].topk(most, largest=False).indices]
        size, mean = self._size[wanted], self._mean[wanted]
        away = torch.addmm(self._square, mean, self._mean.T, alpha=-2).add_(self._square[wanted, None])
        # A row's own size scales all of its heights, so it changes no choice.
        away.clamp_(min=0).mul_(self._size).div_(self._size + size[:, None])
        away[torch.arange(len(wanted), device=wanted.device), wanted] = torch.inf
        mate = away.argmin(dim=1)
        del away
        # Products round; both members of a pair must have the same height.
        exact = (mean - self._mean[mate]).square_().sum(dim=1)
        other = self._size[mate]
        self._near[wanted] = exact * size * other / (size + other)
        self._mate[wanted] = mate
        self._known[wanted] = True

    def merge(self) -> None:
        """Merge the pairs that are each other's nearest, and clusters that are equal."""
        index = torch.arange(len(self._mate), device=self._mate.device)
        known, mate = self._known, self._mate
        mutual = known & known[mate] & (mate[mate] == index)
        equal = known & (self._near == 0)
        if bool(equal.any()):
            pairs = torch.stack([equal.nonzero()[:, 0], mate[equal]])
            for members in _connected(*cast("list[list[int]]", pairs.tolist())):  # pyright: ignore[reportUnknownMemberType]
                mutual[members] = False
                for other in members[1:]:
                    self._join(index[members[0]][None], index[other][None])
        first = (mutual & (index < mate)).nonzero()[:, 0]
        if len(first):
            self._join(first, mate[first])
        elif self.left > 1 and bool((known | ~self._alive).all()):
            # Rounding can make three clusters each other's nearest in a circle.
            first = torch.where(self._alive, self._near, torch.inf).argmin()[None]
            self._join(first, self._mate[first])
        if self.left < _COMPACTED * len(index):
            self._compact()

    def _join(self, first: Int64[Tensor, " P"], second: Int64[Tensor, " P"]) -> None:
        """Merge pairs of clusters; the first of each becomes the merged one."""
        pairs = len(first)
        made = torch.arange(self._made, self._made + pairs, device=first.device)
        self.parent[self._node[first]] = made
        self.parent[self._node[second]] = made
        # Rounding must not put a parent lower than its children.
        below = torch.maximum(self.height[self._node[first]], self.height[self._node[second]])
        self.height[made] = torch.maximum(self._near[first], below)
        self._node[first] = made
        one, other = self._size[first], self._size[second]
        share = (other / (one + other))[:, None]
        mean = self._mean[first]
        mean = mean.add_((self._mean[second] - mean).mul_(share))
        self._mean[first], self._square[first], self._size[first] = mean, mean.square().sum(dim=1), one + other
        self._alive[second] = False
        self._square[second] = torch.inf
        gone = torch.zeros_like(self._alive)
        gone[first] = gone[second] = True
        self._known &= ~(gone | gone[self._mate])
        self._made += pairs
        self.left -= pairs

    def _compact(self) -> None:
        """Remove the clusters that were merged into others."""
        place = self._alive.cumsum(dim=0) - 1
        self._mate = place[self._mate]
        # Means move to lower places, so each block overwrites only what was moved before; no second copy is needed.
        left = self._alive.nonzero()[:, 0]
        for rows in row_blocks(len(left), self._mean.shape[1], self._mean):
            self._mean[rows] = self._mean[left[rows]]
        self._mean = self._mean[: len(left)]
        for name in ("_square", "_size", "_node", "_mate", "_known", "_near", "_alive"):
            setattr(self, name, getattr(self, name)[left])


def _connected(ones: list[int], others: list[int]) -> list[list[int]]:
    """Return the groups of numbers that pairs of them connect.

    >>> _connected([1, 2, 5], [2, 7, 6])
    [[1, 2, 7], [5, 6]]
    """
    group: dict[int, list[int]] = {}
    for one, other in zip(ones, others):
        mine, theirs = group.setdefault(one, [one]), group.setdefault(other, [other])
        if mine is not theirs:
            mine.extend(theirs)
            for each in theirs:
                group[each] = mine
    return list({id(members): members for members in group.values()}.values())


def cut(parent: Int64[Tensor, " nodes"], height: Float32[Tensor, " nodes"], kept: int) -> Int64[Tensor, " N"]:
    """Return the cluster of each token, from 0 to kept - 1, after only the lowest merges of a tree.

    >>> cut(*ward_tree(torch.tensor([[0.0], [5.0], [1.0]])), kept=2).tolist()
    [1, 0, 1]
    """
    count = len(parent) // 2
    lowest = height[count:-1].argsort(stable=True)[: count - kept] + count
    done = torch.zeros_like(parent, dtype=torch.bool).scatter(0, lowest, True)
    root = torch.where(done[parent], parent, torch.arange(2 * count, device=parent.device))
    for _ in range(count.bit_length()):
        root = root[root]
    used = torch.zeros_like(parent).scatter(0, root[:count], 1)
    return (used.cumsum(dim=0) - 1)[root[:count]]


def ward_bytes(count: int, width: int) -> int:
    """Estimate the most bytes that `ward_tree` holds on a CPU."""
    rows = max(64, _BLOCK_BYTES // (_FLOAT32 * count))
    return _FLOAT32 * (count * width + 2 * rows * count + 2 * rows * width) + 100 * count
