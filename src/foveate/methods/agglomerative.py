"""Merge the two closest clusters repeatedly.  Ward 1963; a clusterer for Cluster & Aggregate (our reading)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from foveate.methods import Effort, FoveateError, Method, Plan, Positions, VisualTokens, register
from foveate.methods.arithmetic import products
from foveate.methods.arithmetic.density import squared_distances
from foveate.methods.arithmetic.groups import in_order, middles

_MOST_BYTES = 2_000_000_000
"""The most bytes of distances of one image."""


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
    one matrix of N x N distances, and a smaller one in every round; the number of rounds depends on the content: few if
    many pairs are each other's nearest, N at worst; the host waits once per round. More tokens than 2 GB of distances
    allow (about 15,000) are refused. With thousands of tokens the method takes more than a hundredth of the prefill
    that it saves on a CPU: `docs/speed.md`.

    >>> features = torch.tensor([[[0.0], [0.2], [5.0], [5.1], [9.0]]])
    >>> plan = Agglomerative(keep=3).plan(VisualTokens.of(features, (1, 5)))
    >>> plan.slot.tolist(), plan.group.tolist()
    ([[0, 2, 4]], [[0, 0, 1, 1, 2]])
    """

    positions: Positions = "pack"
    linkage: Literal["ward", "average"] = "ward"

    unchanged_if_all = True

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the distances: in float64 and the copy of SciPy."""
        return _bytes(tokens, on_cpu=True) + (4 * tokens * width if tokens <= products.WHOLE else 0)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Build the tree of all tokens and cut it into the clusters of the budget."""
        kept = self.count(tokens.layout)
        features = tokens.features
        count = features.shape[1]
        needed = _bytes(count, products.on_cpu(features))
        if needed > _MOST_BYTES:
            raise FoveateError(
                f"agglomerative would hold {needed / 1e9:,.1f} GB of distances between {count:,} tokens at once, and "
                f"takes up to {_MOST_BYTES / 1e9:g} GB; use dpc-knn or cluster, or a step before it that leaves fewer "
                "tokens, such as pool"
            )
        if products.on_cpu(features):
            group = torch.stack([_linked(each[None], self.linkage, kept) for each in features])
        else:
            distances = squared_distances(features, whole=count).matrix
            assert distances is not None
            group = _cut(*_tree(distances, self.linkage), kept)
        return in_order(middles(group, kept), group)

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the work: the matrix of distances, then about thirty rounds, each over a smaller matrix."""
        return Effort(2 * tokens**2 * width + 60 * tokens**2, 30 * 50)


def _bytes(count: int, on_cpu: bool) -> int:
    """Return how many bytes of distances are held at once for one image."""
    return round((8.5 if on_cpu else 16) * count**2)


def _linked(features: Float[Tensor, "1 N D"], linkage: str, kept: int) -> Int64[Tensor, " N"]:
    """Return the cluster of each token of one image, from 0 to kept - 1, by SciPy's nearest-neighbour chain."""
    from scipy.cluster import hierarchy  # pyright: ignore[reportMissingTypeStubs]

    count = features.shape[1]
    group = torch.arange(count)
    if kept == count:
        return group
    # Distances of the pairs (0, 1), (0, 2), ... (1, 2), ... as SciPy numbers them.
    pairs = squared_distances(features)
    away = np.empty(count * (count - 1) // 2)
    begins = [row * (2 * count - row - 1) // 2 for row in range(count)]
    for rows, columns, values in pairs.blocks():
        block = values[0].numpy()
        for row in range(rows.start, rows.stop):
            first = max(row + 1, columns.start)
            begin = begins[row] + first - row - 1
            away[begin : begin + columns.stop - first] = block[row - rows.start, first - columns.start :]
    del pairs
    np.sqrt(away, out=away)
    if not np.isfinite(away.sum()):
        raise FoveateError("agglomerative finds no two nearest clusters: the features hold NaN or infinity")
    link = cast("Callable[..., npt.NDArray[np.float64]]", hierarchy.linkage)  # pyright: ignore[reportUnknownMemberType]
    merges = link(away, linkage)[: count - kept, :2].astype(np.int64)
    parent = np.arange(2 * count)
    parent[merges] = count + np.arange(count - kept)[:, None]
    root = parent
    for _ in range(count.bit_length()):
        root = root[root]
    return torch.tensor(np.unique(root[:count], return_inverse=True)[1])


def _heights(between: Float32[Tensor, "B M M"], size: Float32[Tensor, "B M"], linkage: str) -> Float32[Tensor, "B M M"]:
    """Return the height of every possible merge, from sums over all pairs of tokens; inf marks impossible merges."""
    if linkage == "ward":
        # The mean squared distance of tokens to their mean is half the mean squared distance between tokens.
        inside = between.diagonal(dim1=1, dim2=2) / size.clamp(min=1) / 2
        left, right = torch.stack([inside, size], dim=2), torch.stack([size, inside], dim=1)
        heights = torch.baddbmm(between, left, right, alpha=-1).div_(size[:, :, None] + size[:, None])
    else:
        heights = between / (size[:, :, None] * size[:, None])
    heights.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if size.shape[0] > 1:
        gone = size == 0
        heights.masked_fill_(gone[:, :, None], torch.inf).masked_fill_(gone[:, None], torch.inf)
    return heights


def _pairs(near: Float32[Tensor, "B M"], mate: Int64[Tensor, "B M"]) -> tuple[Bool[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Find the pairs of clusters that are each other's nearest; return masks of the first and the second members."""
    index = torch.arange(mate.shape[1], device=mate.device)
    merging = (mate.gather(1, mate) == index) & near.isfinite()
    return merging & (index < mate), merging & (index > mate)


def _agreed(heights: Float32[Tensor, "B M M"]) -> tuple[Float32[Tensor, "B M"], Int64[Tensor, "B M"]]:
    """Return the nearest other cluster of each, and break ties so that pairs choose each other.

    At least one pair does, and many do if many clusters are equally near. Both members of a pair use bitwise the same
    height. Of equally near clusters, each takes the one with the smallest XOR of the two numbers, so neighbours choose
    each other.
    """
    heights = torch.minimum(heights, heights.transpose(1, 2))
    near = heights.amin(dim=2)
    index = torch.arange(heights.shape[1], device=heights.device, dtype=torch.int32)
    apart = torch.where(heights == near[..., None], index[:, None] ^ index, torch.iinfo(torch.int32).max)
    return near, apart.argmin(dim=2)


def _tree(
    distances: Float32[Tensor, "B N N"], linkage: str
) -> tuple[Int64[Tensor, "B nodes"], Float32[Tensor, "B nodes"]]:
    """Return the whole hierarchy: the parent of each node, and the height at which the node was made.

    Nodes 0 to N - 1 are tokens. Nodes N to 2N - 2 are merges, numbered after the nodes that they merge. Node 2N - 1
    stands for no node.
    """
    images, count, _ = distances.shape
    between = distances if linkage == "ward" else distances.sqrt_()
    parent = torch.arange(2 * count, device=between.device).repeat(images, 1)
    height = between.new_zeros(images, 2 * count)
    node, top = parent[:, :count].clone(), between.new_zeros(images, count)
    size = between.new_ones(images, count)
    made = torch.full_like(node[:, :1], count)
    while (width := node.shape[1]) > 1:
        heights = _heights(between, size, linkage)
        near, mate = heights.min(dim=2)
        first, second = _pairs(near, mate)
        left = int(((size > 0) & ~second).sum(dim=1).max())
        if left > width - max(1, width // 16):
            near, mate = _agreed(heights)
            first, second = _pairs(near, mate)
            left = int(((size > 0) & ~second).sum(dim=1).max())
        if left == width:
            raise FoveateError("agglomerative finds no two nearest clusters: the features hold NaN or infinity")
        number = made + first.cumsum(dim=1) - 1
        made = made + first.sum(dim=1, keepdim=True)
        number = torch.where(second, number.gather(1, mate), torch.where(first, number, node))
        # Rounding must not put a parent lower than its children.
        over = torch.maximum(torch.maximum(near, near.gather(1, mate)), torch.maximum(top, top.gather(1, mate)))
        top = torch.where(first | second, over, top)
        parent.scatter_(1, node, number)
        height.scatter_(1, number, top)

        alive = (size > 0) & ~second
        place = alive.cumsum(dim=1) - 1
        place = torch.where(second, place.gather(1, mate), place)
        place = torch.where(size > 0, place, left)
        between = _folded(between, place, left)
        size = size.new_zeros(images, left + 1).scatter_add(1, place, size)[:, :left]
        node, top = _moved(number, place, alive, left, 2 * count - 1), _moved(top, place, alive, left, 0)
    return parent, height


def _folded(between: Float32[Tensor, "B M M"], place: Int64[Tensor, "B M"], left: int) -> Float32[Tensor, "B L L"]:
    """Add up the rows and the columns of merged clusters."""
    images, width, _ = between.shape
    row = place + torch.arange(images, device=place.device)[:, None] * (left + 1)
    rows = between.new_zeros(images * (left + 1), width).index_add_(0, row.flatten(), between.flatten(0, 1))
    rows = rows.view(images, left + 1, width)[:, :left]
    columns = place[:, None].expand(-1, left, -1)
    return between.new_zeros(images, left, left + 1).scatter_add_(2, columns, rows)[..., :left].contiguous()


def _moved(values: Tensor, place: Int64[Tensor, "B M"], alive: Bool[Tensor, "B M"], left: int, fill: int) -> Tensor:
    """Move the values of the clusters that remain to their new places: `(B, M)` -> `(B, left)`."""
    moved = values.new_full((values.shape[0], left + 1), fill)
    return moved.scatter(1, torch.where(alive, place, left), values)[:, :left]


def _cut(parent: Int64[Tensor, "B nodes"], height: Float32[Tensor, "B nodes"], kept: int) -> Int64[Tensor, "B N"]:
    """Return the cluster of each token, from 0 to kept - 1, after only the lowest merges."""
    count = parent.shape[1] // 2
    lowest = height[:, count:-1].argsort(dim=1, stable=True)[:, : count - kept] + count
    done = torch.zeros_like(parent, dtype=torch.bool).scatter(1, lowest, True)
    root = torch.where(done.gather(1, parent), parent, torch.arange(2 * count, device=parent.device))
    for _ in range(count.bit_length()):
        root = root.gather(1, root)
    root = root[:, :count]
    used = torch.zeros_like(parent).scatter(1, root, 1)
    return (used.cumsum(dim=1) - 1).gather(1, root)
