"""Where the time of a call goes: encoder, prefill, decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foveate.devices import devices_of, synchronize
from foveate.families import family_of

clock = time.perf_counter
"""What all times are read from. A benchmark on a busy machine puts `time.process_time` here."""


def now(devices: torch.device | Iterable[torch.device], synchronise: bool = True) -> float:
    """Read a clock that only goes forward, in seconds.

    Args:
        devices: what runs the work that is timed: one device, or all that a model is spread over.
        synchronise: first wait until they have done what is queued; a CPU queues nothing.
    """
    if synchronise:
        synchronize((devices,) if isinstance(devices, torch.device) else devices)
    return clock()


@dataclass
class Times:
    """Milliseconds of one or more calls, by part.

    `encoder` is the vision encoder with its merger, `prefill` every decoder call with more than one new token,
    `decode` every decoder call with one. The head that makes logits is in neither.
    """

    encoder: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prefill_tokens: int = 0
    """New tokens of all prefill calls, over one row each."""
    decode_tokens: int = 0
    _began: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)
    """Per module and thread."""


@contextmanager
def timed(model: nn.Module) -> Iterator[Times]:
    """Time every call of a model inside the block.

    On CUDA each part waits for the device, so the whole runs a little slower than without.

    Args:
        model: a model of a supported family, dense or under `apply`.

    Yields:
        `Times`, filled as calls are made.

    Raises:
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    times = Times()
    devices = devices_of(model)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        times._began[id(module), threading.get_ident()] = now(devices)

    def since(module: nn.Module) -> float:
        return (now(devices) - times._began.pop((id(module), threading.get_ident()))) * 1e3

    def after_tower(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        times.encoder += since(module)

    def after_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        milliseconds = since(module)
        new = kwargs["inputs_embeds"].shape[1]
        if new > 1:
            times.prefill += milliseconds
            times.prefill_tokens += new
        else:
            times.decode += milliseconds
            times.decode_tokens += new

    handles = [
        family.tower.register_forward_pre_hook(before, with_kwargs=True),
        family.tower.register_forward_hook(after_tower, with_kwargs=True),
        family.decoder.register_forward_pre_hook(before, with_kwargs=True),
        family.decoder.register_forward_hook(after_decoder, with_kwargs=True),
    ]
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()
