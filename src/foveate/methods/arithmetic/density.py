"""Find density peaks: tokens with many similar neighbours, far from any denser token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32, Int64

from foveate.methods.arithmetic.products import BLOCK_BYTES, WHOLE, Pairs, pairs_bytes

if TYPE_CHECKING:
    from torch import Tensor


def squared_distances(features: Float[Tensor, "B N D"], whole: int | None = None) -> Pairs:
    """Return squared Euclidean distances between the tokens of each image, in float32.

    The mean token is subtracted first, which changes no distance and keeps small distances exact.

    Args:
        features: `(B, N, D)`, any float dtype.
        whole: the most tokens for a matrix of all distances.
    """
    x = features.float()
    return Pairs(x - x.mean(dim=1, keepdim=True), distances=True, whole=whole)


def density_peaks(
    features: Float[Tensor, "B N D"], kept: int, neighbours: int
) -> tuple[Int64[Tensor, "B M"], Int64[Tensor, "B N"]]:
    """Cluster tokens around density peaks over nearest neighbours (DPC-KNN).

    d is the Euclidean distance divided by the square root of D. The density of a token is exp(-mean of d^2 to its
    `neighbours` nearest tokens, itself included). Its distance is d to the nearest denser token; for the densest token
    it is the largest d of all. The `kept` tokens with the largest products of density and distance are centres. Every
    other token joins its nearest centre. Products are compared by their logarithms, which don't underflow. Of equal
    densities the first token counts as the denser; of equal products the first token is taken.

    Args:
        features: `(B, N, D)`, any float dtype.
        kept: the number of centres.
        neighbours: the number of tokens that a density is computed over; N if there are fewer.

    Returns:
        `(B, kept)` int64, the centres, highest product first; `(B, N)` int64, the number of each token's centre.

    >>> features = torch.tensor([[[0.0], [0.1], [5.0], [5.1], [5.3]]])
    >>> centre, group = density_peaks(features, kept=2, neighbours=2)
    >>> centre.tolist(), group.tolist()
    ([[2, 0]], [[1, 1, 0, 0, 0]])
    """
    images, count, width = features.shape
    away = squared_distances(features)
    index = torch.arange(count, device=features.device).expand(images, -1)
    sparse, most = _sparsity(away, index, min(neighbours, count))
    rank = torch.zeros_like(index).scatter(1, sparse.argsort(dim=1, stable=True), index)
    far = torch.where(rank == 0, most, _to_denser(away, rank))
    # The division of d by the square root of D changes every log(d) by the same amount, so it is left out there.
    score = far.log() / 2 - sparse / width
    centre = score.argsort(dim=1, descending=True, stable=True)[:, :kept]
    # A centre belongs to itself, even if another centre has the same features.
    return centre, away.nearest(centre).scatter(1, centre, index[:, :kept])


def _sparsity(
    away: Pairs, index: Int64[Tensor, "B N"], neighbours: int
) -> tuple[Float32[Tensor, "B N"], Float32[Tensor, "B 1"]]:
    """Return the mean squared distance of each token to its nearest tokens, itself included, and the largest of all."""
    images, count = index.shape
    nearest = torch.full((images, count, neighbours), torch.inf, device=index.device)
    most = nearest.new_zeros(images)

    def smallest(values: Tensor) -> Tensor:
        return values.topk(neighbours, dim=2, largest=False).values

    for rows, columns, values in away.blocks():
        most = torch.maximum(most, values.amax(dim=(1, 2)))
        if columns.stop - columns.start == count:
            nearest[:, rows] = smallest(values)
            continue
        nearest[:, rows] = smallest(torch.cat([nearest[:, rows], values], dim=2))
        if columns != rows:
            nearest[:, columns] = smallest(torch.cat([nearest[:, columns], values.transpose(1, 2)], dim=2))
    return nearest.mean(dim=2), most[:, None]


def _to_denser(away: Pairs, rank: Int64[Tensor, "B N"]) -> Float32[Tensor, "B N"]:
    """Return the squared distance of each token to the nearest token of a lower rank; inf if there is none."""
    far = torch.full(rank.shape, torch.inf, device=rank.device)
    for rows, columns, values in away.blocks():
        mine, theirs = rank[:, rows, None], rank[:, None, columns]
        own = torch.where(theirs < mine, values, torch.inf).amin(dim=2)
        far[:, rows] = torch.minimum(far[:, rows], own)
        if columns.start > rows.start:
            far[:, columns] = torch.minimum(far[:, columns], torch.where(mine < theirs, values, torch.inf).amin(dim=1))
    return far


def density_bytes(count: int, width: int, neighbours: int) -> int:
    """Estimate the most bytes that `density_peaks` holds for one image on a CPU."""
    scanned = 4 * count * width
    scanned += 4 * count**2 + min(4 * count**2, BLOCK_BYTES) if count <= WHOLE else 2 * BLOCK_BYTES
    return max(pairs_bytes(count, width), scanned) + count * (60 + 4 * min(neighbours, count))
