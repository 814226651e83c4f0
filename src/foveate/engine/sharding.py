"""Models whose weights FSDP has sharded: each group of modules has its weights only while its `forward` runs.

FSDP2 is `torch.distributed.fsdp.fully_shard`, which leaves modules where they are; FSDP1 is the wrapper
`FullyShardedDataParallel`, which stands around a module.

What foveate does inside the model's own forward finds them. Two things happen outside of a group's forward: features
are projected again after a step at `@features`, and `encode` and `compress` run the encoder alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families.wrappers import holds


@contextmanager
def gathered(core: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have the weights of modules inside `core` whole in the block, whatever FSDP2 has sharded of them.

    A group that is sharded is gathered, and sharded again after the block. Under autograd it stays whole until its
    backward pass, which needs the weights.
    """
    groups = [group for group in _groups(core) if _is_sharded(group) and any(holds(group, each) for each in modules)]
    for group in groups:
        group.unshard()
    try:
        yield
    finally:
        for group in groups if not torch.is_grad_enabled() else ():
            group.reshard()


def refuse_sharded(model: nn.Module, core: nn.Module) -> None:
    """Refuse to run the encoder of `core` by itself if weights around it are sharded.

    Raises:
        FoveateError: they are.
    """
    wrapped = any(_is_a(each, _FSDP1) and holds(each, core) for each in model.modules())
    if wrapped or any(holds(group, core) and _is_sharded(group) for group in _groups(model)):
        raise FoveateError(
            "the weights of this model are sharded (FSDP), and are whole only inside the model's own forward; use "
            "foveate.apply, which works there (after fully_shard and a first forward, model.unshard() helps, too)"
        )


def inside_wrapper(module: Any) -> nn.Module:
    """Return the module in FSDP1's wrapper, whose hooks run when its weights are whole; or the module itself."""
    return module.module if _is_a(module, _FSDP1) else module


_FSDP1 = "FullyShardedDataParallel"


def _is_a(module: nn.Module, name: str) -> bool:
    # By the names of base classes: most models aren't sharded, and the import takes time.
    return any(base.__name__ == name for base in type(module).__mro__)


def _groups(model: nn.Module) -> list[Any]:
    """Return the modules that `fully_shard` was called on; each holds its weights apart from those of inner ones."""
    return [each for each in model.modules() if _is_a(each, "FSDPModule")]


def _is_sharded(group: nn.Module) -> bool:
    """Return whether a group's own weights are in shards now."""
    inner = {id(weight) for each in _groups(group) if each is not group for weight in each.parameters()}
    return any(_is_shard(weight) for weight in group.parameters() if id(weight) not in inner)


def _is_shard(weight: Tensor) -> bool:
    return hasattr(weight, "full_tensor")
