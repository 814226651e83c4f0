"""How many tokens thresholds leave, as a loss.  ATP-LLaVA, Eq. 12 and 13, in shares of tokens (our reading)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError
from foveate.numbers import Between, check_whole


def mean_share(shares: Float32[Tensor, "images steps"], layers: Sequence[int], depth: int) -> Float32[Tensor, "images"]:
    """Return each image's tokens per decoder layer, as a share of all of its tokens: `(images,)` float32.

    Layers before the first threshold have all tokens.

    Args:
        shares: `(images, steps)` float32, the share of an image's tokens left after each of the adapter's layers.
        layers: the adapter's layers, ascending.
        depth: the number of decoder layers.

    Raises:
        FoveateError: shares, layers and depth don't fit together.

    >>> mean_share(torch.tensor([[0.5, 0.25]]), (2, 4), 8).tolist()
    [0.5]
    """
    check_kind("shares", shares, Tensor, "a tensor (images, layers of the adapter)")
    layers = [check_whole("a layer", layer, Between(1)) for layer in listed("layers", layers, "numbers of layers")]
    if shares.ndim != 2 or shares.shape[1] != len(layers) or not layers:
        raise FoveateError(f"shares are {tuple(shares.shape)} for {len(layers)} layers; they need one for each layer")
    depth = check_whole("depth", depth, Between(layers[-1] + 1))
    spans = [end - begin for begin, end in zip(layers, [*layers[1:], depth], strict=True)]
    weights = torch.tensor(spans, dtype=shares.dtype, device=shares.device)
    return (layers[0] + (shares * weights).sum(dim=1)) / depth


def budget_loss(
    shares: Float32[Tensor, "images steps"],
    layers: Sequence[int],
    depth: int,
    target: float,
    *,
    later: float,
    mean: float,
) -> Float32[Tensor, ""]:
    """Return the loss of the tokens that are left: a scalar.

    It has two terms: what tokens cost, more in later layers, and how far their mean share is from the target.

    Args:
        shares: `(images, steps)` float32, the share of an image's tokens left after each of the adapter's layers.
        layers: the adapter's layers, ascending.
        depth: the number of decoder layers.
        target: the wanted share of tokens per decoder layer, averaged over layers and images.
        later: the weight of the first term, the mean of share times relative depth.
        mean: the weight of the second term.

    >>> budget_loss(torch.tensor([[0.5, 0.25]]), (2, 4), 8, 0.25, later=0.0, mean=1.0).item()
    0.25
    """
    whole = mean_share(shares, layers, depth)
    depths = torch.tensor(layers, dtype=shares.dtype, device=shares.device) / depth
    distance = (whole.mean() - target).abs()
    return later * (shares * depths).mean() + mean * distance
