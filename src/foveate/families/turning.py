"""Check whether cached keys can be rotated to other positions without running the decoder, and by which angles."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from foveate.errors import UnsupportedFamily
from foveate.families.decoder import rotate
from foveate.families.evaluating import evaluating
from foveate.families.family import Family
from foveate.transformers_api import cache_argument, new_cache

if TYPE_CHECKING:
    from torch import Tensor, nn

_STEP = 100
_OFF = 0.05
"""Largest accepted error: half precision is off by 0.01; another rotation, or none, by 0.15 and more."""

_turns: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def frequencies(family: Family) -> Float[Tensor, "half"]:
    """Return the angles by which one position rotates the keys of a decoder: in radians, float32, for `turned`.

    The first call for a decoder runs one token through it at two positions, since only this shows how each of its
    layers rotates keys.

    Returns:
        `(r / 2,)` if the first r numbers of a head are rotated; empty if the layers don't all rotate their keys by one
        set of frequencies, because some don't rotate them, or pair other numbers.

    Raises:
        UnsupportedFamily: a layer caches something other than keys and values.
    """
    decoder: Any = family.decoder
    rotary = getattr(decoder, "rotary_emb", None)
    # These frequencies change with the length of the conversation, so they can't be measured at its beginning.
    moving = any(name in str(getattr(rotary, "rope_type", "")) for name in ("dynamic", "longrope"))
    found = None if moving else getattr(rotary, "inv_freq", None)
    if decoder not in _turns:
        keys = _keys_at_two_positions(family)
        _turns[decoder] = found is not None and _explain(found.detach().float(), keys)
    return torch.empty(0) if found is None or not _turns[decoder] else found.detach().float().clone()


def turned(keys: Float[Tensor, "*B d"], frequencies: Float[Tensor, "half"], steps: int) -> Float[Tensor, "*B d"]:
    """Return keys rotated to `steps` positions further on, in float32.

    >>> turned(torch.tensor([[1.0, 0.0]]), torch.tensor([torch.pi / 2]), 1).round()
    tensor([[-0., 1.]])
    """
    angle = steps * frequencies.double()
    cos, sin = (torch.cat([part, part]).to(torch.float32) for part in (angle.cos(), angle.sin()))
    return rotate(keys.float(), cos, sin)


def _keys_at_two_positions(family: Family) -> list[Tensor]:
    """Return the keys of each layer, `(2, H, 1, d)`: of one token alone, first at 0, then at `_STEP`."""
    decoder: Any = family.decoder
    cache: Any = new_cache(decoder.config)
    with torch.no_grad(), evaluating(decoder):
        embedded = family.embed(torch.zeros(1, 1, dtype=torch.int64, device=family.device))
        token = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded)
        positions = torch.tensor([[0], [_STEP]], device=embedded.device)
        decoder(
            inputs_embeds=token.expand(2, -1, -1),
            attention_mask=torch.ones_like(positions),
            position_ids=positions if family.position_axes == 1 else positions.expand(family.position_axes, -1, -1),
            use_cache=True,
            **cache_argument(decoder.forward, cache),
        )
    if not all(isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in cache.layers):
        raise UnsupportedFamily(f"{family.title} has layers that remember something else than keys and values")
    return [layer.keys for layer in cache.layers]


def _explain(frequencies: Tensor, keys: Sequence[Tensor]) -> bool:
    for here, there in (layer.float().unbind(0) for layer in keys):
        if 2 * frequencies.shape[0] > here.shape[-1]:
            return False
        expected = turned(here, frequencies.to(here.device), _STEP)
        # Relative error per number: a few large numbers that hardly rotate must not hide the others.
        size = (expected.abs() + there.abs()).clamp(min=torch.finfo(torch.float32).tiny)
        if ((expected - there).abs() / size).mean() > _OFF:
            return False
    return True
