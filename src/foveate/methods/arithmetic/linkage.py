"""Clusters of tokens by linkage: the lowest merges of the tree in which the two nearest clusters are always merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64

from foveate.errors import FoveateError
from foveate.methods.arithmetic import products
from foveate.methods.arithmetic.density import squared_distances
from foveate.methods.arithmetic.ward import cut, ward_tree

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

MOST_BYTES: Final = 2_000_000_000
"""The most bytes of distances of one image."""
ROUNDS: Final = 6
"""Rounds of merges on an accelerator between two questions of the host: whether they suffice."""


def clusters(features: Float[Tensor, "B N D"], linkage: str, kept: int) -> Int64[Tensor, "B N"]:
    """Return the cluster of each token, from 0 to kept - 1.

    Raises:
        FoveateError: distances would take too much memory, or no two clusters are nearest.
    """
    count = features.shape[1]
    needed = distance_bytes(count, products.on_cpu(features))
    if needed > MOST_BYTES and linkage == "ward":
        return torch.stack([cut(*ward_tree(each.float()), kept) for each in features])
    if needed > MOST_BYTES:
        raise FoveateError(
            f"agglomerative with linkage={linkage} would hold {needed / 1e9:,.1f} GB of distances between "
            f"{count:,} tokens at once, and takes up to {MOST_BYTES / 1e9:g} GB; use linkage=ward, which needs "
            "none, or a step before it that leaves fewer tokens, such as pool"
        )
    if products.on_cpu(features):
        return torch.stack([_linked(each[None], linkage, kept) for each in features])
    distances = squared_distances(features, whole=count).matrix
    assert distances is not None
    return _grouped(distances, linkage, kept)


def distance_bytes(count: int, on_cpu: bool) -> int:
    """Return how many bytes of distances are held at once for one image."""
    return round((8.5 if on_cpu else 20) * count**2)


def _linked(features: Float[Tensor, "1 N D"], linkage: str, kept: int) -> Int64[Tensor, " N"]:
    """Return the cluster of each token of one image, from 0 to kept - 1, by SciPy's nearest-neighbour chain."""
    from scipy.cluster import hierarchy  # pyright: ignore[reportMissingTypeStubs]

    count = features.shape[1]
    if kept == count:
        return torch.arange(count)
    away = _distances(features)
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


def _distances(features: Float[Tensor, "1 N D"]) -> npt.NDArray[np.float64]:
    """Return the distances of the pairs (0, 1), (0, 2), ... (1, 2), ..., as SciPy numbers them."""
    count = features.shape[1]
    pairs = squared_distances(features)
    away = np.empty(count * (count - 1) // 2)
    begins = [row * (2 * count - row - 1) // 2 for row in range(count)]
    for rows, columns, values in pairs.blocks():
        block = values[0].numpy()
        for row in range(rows.start, rows.stop):
            first = max(row + 1, columns.start)
            begin = begins[row] + first - row - 1
            away[begin : begin + columns.stop - first] = block[row - rows.start, first - columns.start :]
    return np.sqrt(away, out=away)


def _grouped(distances: Float32[Tensor, "B N N"], linkage: str, kept: int) -> Int64[Tensor, "B N"]:
    """Return the cluster of each token, from 0 to kept - 1; overwrite the distances.

    A cluster is named after its first token, and a merge ends the name of the later of two clusters. Rounds stop once
    no merge that is left can be among the lowest.
    """
    images, count, _ = distances.shape
    between = distances if linkage == "ward" else distances.sqrt_()
    between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    state = between.new_zeros(images, 3, count)
    state[:, 0] = 1
    names = torch.arange(count, device=between.device).expand(images, -1)
    ended: list[Tensor] = []
    into: list[Tensor] = []
    heights: list[Tensor] = []
    before = -1
    merges = count - kept
    while merges:
        index = torch.arange(names.shape[1], device=between.device, dtype=torch.int32)
        apart = index[:, None] ^ index
        for _ in range(ROUNDS):
            between, state, mate, height = _merged_round(between, state, index, apart, linkage)
            ended.append(names)
            into.append(names.gather(1, mate))
            heights.append(height)
        found = torch.cat(heights, dim=1)
        done = found.sort(dim=1).values[:, merges - 1] <= _lowest(between, state, linkage)
        dead = (found < torch.inf).sum(dim=1)
        finished, most, fewest = map(int, torch.stack([done.all().long(), dead.sum(), dead.amin()]).cpu())
        if finished:
            break
        if most == before:
            raise FoveateError("agglomerative finds no two nearest clusters: the features hold NaN or infinity")
        before = most
        if 2 * (count - fewest) <= names.shape[1]:
            # Those whose names ended go behind the others.
            left = heights[-1].new_zeros(images, count).scatter_add(1, torch.cat(ended, 1), (found < torch.inf).float())
            order = left.gather(1, names).argsort(dim=1, stable=True)[:, : count - fewest]
            between = between.gather(1, order[..., None].expand(-1, -1, names.shape[1]))
            between = between.gather(2, order[:, None].expand(-1, order.shape[1], -1))
            state = state.gather(2, order[:, None].expand(-1, 3, -1))
            names = names.gather(1, order)
    root = torch.arange(count, device=between.device).repeat(images, 1)
    if merges:
        order = torch.cat(heights, dim=1).argsort(dim=1, stable=True)[:, :merges]
        root.scatter_(1, torch.cat(ended, dim=1).gather(1, order), torch.cat(into, dim=1).gather(1, order))
    for _ in range(count.bit_length()):
        root = root.gather(1, root)
    used = torch.zeros_like(root).scatter_(1, root, 1)
    return (used.cumsum(dim=1) - 1).gather(1, root)


def _heights(between: Float32[Tensor, "B M M"], state: Float32[Tensor, "B 3 M"], linkage: str) -> Tensor:
    """Return the height of every possible merge, `(B, M, M)`, bitwise the same in both directions; inf where none is.

    Args:
        between: sums of distances over all pairs of tokens of two clusters.
        state: of each cluster its size, the sum of distances over its own pairs, and the height of its last merge.
        linkage: "ward" or "average".
    """
    size = state[:, 0]
    if linkage == "ward":
        # The squared distances of tokens to their mean add up to those between tokens, divided by their number.
        pair = torch.stack([size, state[:, 1] / size], dim=1)
        heights = torch.baddbmm(between, pair.flip(1).transpose(1, 2), pair, alpha=-1)
        heights.div_(size[:, :, None] + size[:, None])
    else:
        heights = between / (size[:, :, None] * size[:, None])
    # The rows of ended clusters are infinite, their columns aren't.
    return torch.maximum(heights, heights.transpose(1, 2))


def _lowest(between: Float32[Tensor, "B M M"], state: Float32[Tensor, "B 3 M"], linkage: str) -> Float32[Tensor, " B"]:
    return _heights(between, state, linkage).amin(dim=(1, 2))


def _merged_round(
    between: Float32[Tensor, "B M M"],
    state: Float32[Tensor, "B 3 M"],
    index: Int32[Tensor, " M"],
    apart: Int32[Tensor, "M M"],
    linkage: str,
) -> tuple[Float32[Tensor, "B M M"], Float32[Tensor, "B 3 M"], Int64[Tensor, "B M"], Float32[Tensor, "B M"]]:
    """Merge all pairs of clusters that are each other's nearest; the first of a pair goes on, the other one ends.

    Of equally near clusters, each takes the one with the smallest XOR of the two numbers, so neighbours choose each
    other, and at least one pair does.

    Returns:
        `between` and `state` after it, what has ended being infinitely far; the nearest cluster of each; and the height
        at which each ended, inf if it didn't.
    """
    heights = _heights(between, state, linkage)
    near = heights.amin(dim=2, keepdim=True)
    mate = apart.masked_fill(heights != near, torch.iinfo(torch.int32).max).argmin(dim=2)
    del heights
    # A cluster without a finite distance is its own mate, since it is nearest to itself by number.
    alone = mate.gather(1, mate) != index
    stays = alone | (mate <= index)
    lives = alone | (mate >= index)
    theirs = state.gather(2, mate[:, None].expand(-1, 3, -1))
    joined = state + theirs
    joined[:, 1].add_(between.gather(2, mate[..., None])[..., 0])
    # Rounding must not put a merge lower than those before it.
    height = torch.maximum(torch.maximum(near[..., 0], state[:, 2]), theirs[:, 2], out=joined[:, 2])
    state = torch.where(stays[:, None], state, joined)
    rows = mate[..., None].expand_as(between)
    between = between + between.gather(1, rows).masked_fill_(stays[..., None], 0)
    between.add_(between.gather(2, rows.transpose(1, 2)).masked_fill_(stays[:, None], 0))
    between.masked_fill_(~lives[..., None], torch.inf)
    return between, state, mate, height.masked_fill(lives, torch.inf)
