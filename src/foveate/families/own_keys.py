"""Check that keys computed from a decoder's modules are those that the model itself makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from foveate.errors import FoveateError
from foveate.families.decoder import Decoder
from foveate.families.evaluating import evaluating
from foveate.transformers_api import layer_keys

if TYPE_CHECKING:
    from torch import Tensor, nn

_OFF = 0.05
"""Largest accepted error, relative to the keys: half precision is off by 0.01, another rotation by 1."""

_found: weakref.WeakKeyDictionary[nn.Module, bool | None] = weakref.WeakKeyDictionary()


def computes_own_keys(family: Decoder, embed: Callable[[Tensor], Tensor], axes: int) -> bool | None:
    """Return whether `family.keys` gives the keys of the model: it does not if heads are rotated in other pairs.

    The first call for a model runs on two tokens the first decoder layer of each kind, and of each way to set up its
    attention: some layers have no rotary embedding. Where weights may not be at hand nothing is checked, and the answer
    is True: in a process group, which may have sharded them, and where they are offloaded or were never loaded. None if
    a layer can't be asked.

    Args:
        family: of the model.
        embed: embeds text, as `Family.embed` does.
        axes: of position ids.
    """
    firsts: dict[object, int] = {}
    for number, (kind, layer) in enumerate(zip(family.layer_kinds(), family.decoder_layers)):
        firsts.setdefault((kind, _settings(getattr(layer, "self_attn", layer))), number)
    layers: list[Any] = [family.decoder_layers[first] for first in firsts.values()]
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together or any(weight.is_meta for layer in layers for weight in layer.parameters()):
        return True
    for first, layer in zip(firsts.values(), layers):
        if layer not in _found:
            _found[layer] = _computes_keys_of(family, first, embed, axes)
    answers = [_found[layer] for layer in layers]
    return False if False in answers else None if None in answers else True


def _settings(attention: nn.Module) -> tuple[tuple[str, object], ...]:
    """Return the plain values among the attributes of a layer's attention, without its number."""
    values = sorted(vars(attention).items())
    return tuple(each for each in values if each[0] != "layer_idx" and isinstance(each[1], bool | int | float | str))


def _computes_keys_of(family: Decoder, number: int, embed: Callable[[Tensor], Tensor], axes: int) -> bool | None:
    """Run a layer on two tokens and compare."""
    layer = family.decoder_layers[number]
    embedded = embed(torch.zeros(1, 2, dtype=torch.int64, device=family.device)).detach()
    hidden = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded)
    positions = torch.tensor([[3, 50]], device=hidden.device)
    if axes > 1:
        positions = positions.expand(axes, -1, -1)
    with torch.no_grad(), evaluating(layer):
        tables = family.rotary(hidden, positions, number)
        own = layer_keys(layer, number, family.decoder_config, hidden, tables, positions)
        if own is None:
            return None
        try:
            mine = family.keys(number, hidden, family.cos_sin(tables)).transpose(1, 2)
        except FoveateError:
            return False
    return own.shape == mine.shape and _close(own.float(), mine.to(own.device).float())


def _close(own: torch.Tensor, mine: torch.Tensor) -> bool:
    return bool((own - mine).abs().mean() <= _OFF * own.abs().mean())
