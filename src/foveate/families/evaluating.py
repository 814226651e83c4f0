"""Run modules as in evaluation, whatever mode they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Turn off dropout, which would change what a module makes, and gradient checkpointing, which excludes a cache.

    >>> import torch
    >>> dropout = torch.nn.Dropout()
    >>> with evaluating(dropout):
    ...     dropout.training
    False
    """
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True
