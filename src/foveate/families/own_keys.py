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

    The first call for a model runs its first decoder layer on two tokens. Where weights may not be at hand nothing is
    checked: in a process group, which may have sharded them, and where they are offloaded or were never loaded.
    """
    layer: Any = family.decoder_layers[0]
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together or any(weight.is_meta for weight in layer.parameters()):
        return True
    if layer not in _found:
        embedded = family.embed(torch.zeros(1, 2, dtype=torch.int64, device=family.device)).detach()
        hidden = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded)
        positions = torch.tensor([[3, 50]], device=hidden.device)
        if family.position_axes > 1:
            positions = positions.expand(family.position_axes, -1, -1)
        with torch.no_grad():
            tables = family.rotary(hidden, positions, 0)
            own = layer_keys(layer, family.decoder_config, hidden, tables)
            mine = family.keys(0, hidden, tables).transpose(1, 2)
        _found[layer] = own is not None and own.shape == mine.shape and _close(own.float(), mine.to(own.device).float())
    return _found[layer]


def _close(own: torch.Tensor, mine: torch.Tensor) -> bool:
    return bool((own - mine).abs().mean() <= _OFF * own.abs().mean())
