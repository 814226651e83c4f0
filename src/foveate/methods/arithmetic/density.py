"""Find density peaks: tokens with many similar neighbours, far from any denser token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


def squared_distances(features: Float[Tensor, "B N D"]) -> Float32[Tensor, "B N N"]:
    """Return squared Euclidean distances between the tokens of each image: `(B, N, N)` float32, 0 on the diagonal.

    This takes one matrix product. The mean token is subtracted first, which changes no distance and keeps small
    distances exact.
    """
    x = features.float()
    x = x - x.mean(dim=1, keepdim=True)
    length = x.square().sum(dim=-1)
    away = torch.baddbmm(length[:, None] + length[..., None], x, x.transpose(1, 2), alpha=-2).clamp_(min=0)
    # The product may round d(i, j) and d(j, i) differently, but two nearest neighbours must be equally dense.
    away = away.triu(diagonal=1)
    return away + away.transpose(1, 2)


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
    sparse = away.topk(min(neighbours, count), dim=2, largest=False).values.mean(dim=2)
    index = torch.arange(count, device=features.device).expand(images, -1)
    rank = torch.zeros_like(index).scatter(1, sparse.argsort(dim=1, stable=True), index)
    far = torch.where(rank[:, None] < rank[..., None], away, torch.inf).amin(dim=2)
    far = torch.where(rank == 0, away.amax(dim=(1, 2))[:, None], far)
    # The division of d by the square root of D changes every log(d) by the same amount, so it is left out there.
    score = far.log() / 2 - sparse / width
    centre = score.argsort(dim=1, descending=True, stable=True)[:, :kept]
    group = away.gather(2, centre[:, None].expand(-1, count, -1)).argmin(dim=2)
    # A centre belongs to itself, even if another centre has the same features.
    return centre, group.scatter(1, centre, index[:, :kept])
