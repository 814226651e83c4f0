"""Check that keys computed from a decoder's modules are those that the model itself makes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from foveate.families.family import Family
from foveate.transformers_api import layer_keys

_OFF = 0.05
"""Largest accepted error, relative to the keys: half precision is off by 0.01, another rotation by 1."""

_found: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def computes_own_keys(family: Family) -> bool:
    """Return whether `family.keys` gives the keys of the model: it does not if heads are rotated in other pairs.

    The first call for a model runs the first decoder layer of each kind on two tokens. Where weights may not be at hand
    nothing is checked: in a process group, which may have sharded them, and where they are offloaded or were never
    loaded.
    """
    kinds = family.layer_kinds()
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    layers: list[Any] = [family.decoder_layers[first] for first in firsts]
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together or any(weight.is_meta for layer in layers for weight in layer.parameters()):
        return True
    for first, layer in zip(firsts, layers):
        if layer not in _found:
            _found[layer] = _computes_keys_of(family, first)
    return all(_found[layer] for layer in layers)


def _computes_keys_of(family: Family, number: int) -> bool:
    """Run a layer on two tokens and compare; without a norm before attention, what it reads is not known."""
    layer = family.decoder_layers[number]
    if not hasattr(layer, "input_layernorm"):
        return False
    embedded = family.embed(torch.zeros(1, 2, dtype=torch.int64, device=family.device)).detach()
    hidden = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded)
    positions = torch.tensor([[3, 50]], device=hidden.device)
    if family.position_axes > 1:
        positions = positions.expand(family.position_axes, -1, -1)
    with torch.no_grad():
        tables = family.rotary(hidden, positions, number)
        own = layer_keys(layer, number, family.decoder_config, hidden, tables)
        mine = family.keys(number, hidden, tables).transpose(1, 2)
    return own is not None and own.shape == mine.shape and _close(own.float(), mine.to(own.device).float())


def _close(own: torch.Tensor, mine: torch.Tensor) -> bool:
    return bool((own - mine).abs().mean() <= _OFF * own.abs().mean())
