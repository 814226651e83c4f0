"""Where the weights of a module are when they are needed: accelerate moves offloaded ones only for a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device that a module runs on: for offloaded weights, the one that accelerate moves them to.

    None for a module without weights.

    >>> execution_device(torch.nn.Linear(2, 2))
    device(type='cpu')
    """
    for each in module.modules():
        hook: Any = getattr(each, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            place = getattr(part, "execution_device", None)
            if place is not None:
                return torch.device(place)
    weight = next(module.parameters(), None)
    return None if weight is None else weight.device


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Load a module's own offloaded weights inside the block, as accelerate does while its `forward` runs.

    For code that calls another method of the module; its submodules load their weights themselves.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
