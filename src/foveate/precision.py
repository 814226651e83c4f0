"""Compute in the dtype of the tensors, whatever `torch.autocast` is open."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


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
