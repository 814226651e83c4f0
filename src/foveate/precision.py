"""Open `torch.autocast` as a recipe asks for it, or compute in the dtype of the tensors, whatever is open."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch

_HALVES: Final = {"bf16": "bfloat16", "fp16": "float16"}
"""What autocast computes products in, by the words of a recipe's `precision`; another word opens none. By names, since
this module is imported where torch isn't needed yet."""


def with_autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Open autocast for a forward pass outside of the Trainer, as the Trainer does inside.

    Args:
        device: of the model.
        precision: of the recipe.

    >>> with with_autocast(torch.device("cpu"), "bf16"):
    ...     (torch.ones(2, 2, dtype=torch.bfloat16) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    if precision not in _HALVES:
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, _HALVES[precision]))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off inside the block, so that a plan is the same in training under autocast as without it.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     with without_autocast(torch.device("cpu")):
    ...         (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
