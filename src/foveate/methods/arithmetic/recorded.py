"""What `torch.export` and `torch.compile` record of a plan as one operation, or as a constant.

Its import takes torch, so methods import it where they use it: counts of tokens need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Int64

from foveate.devices import constant
from foveate.methods.arithmetic.linkage import clusters

if TYPE_CHECKING:
    from torch import Tensor


@constant
def draws(seed: int, count: int) -> Float32[Tensor, " M"]:
    """Return random numbers from 0 to 1: `(count,)` float32."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@constant
def places(seed: int, count: int, kept: int) -> Int64[Tensor, " M"]:
    """Choose `kept` of `count` places at random, ascending: `(kept,)` int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:kept].sort().values


@torch.library.custom_op(
    "foveate::agglomerative", mutates_args=(), schema="(Tensor features, str linkage, int kept) -> Tensor"
)
def clusters_at_once(features: Tensor, linkage: str, kept: int) -> Tensor:
    """Compute `linkage.clusters` where `torch.export` or `torch.compile` has recorded it."""
    return clusters(features, linkage, kept)


@clusters_at_once.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(features: Tensor, linkage: str, kept: int) -> Tensor:
    """Tell the shape and the dtype of what it returns."""
    return features.new_empty(features.shape[:2], dtype=torch.int64)
