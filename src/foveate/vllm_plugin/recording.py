"""What modules of vLLM's encoders give while they run: methods ask for attention and keys of the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather


@contextmanager
def recorded(modules: Mapping[int, Mapping[str, nn.Module]]) -> Iterator[dict[int, dict[str, Any]]]:
    """Record the outputs of modules of some encoder layers while the encoder runs.

    Args:
        modules: for each layer, by a name.

    Yields:
        The outputs for each layer, by these names; filled as layers run.
    """
    found: dict[int, dict[str, Any]] = {layer: {} for layer in modules}
    handles: list[Any] = []

    def record(layer: int, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[layer][name] = output

        return hook

    try:
        for layer, named in modules.items():
            handles += [module.register_forward_hook(record(layer, name)) for name, module in named.items()]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def all_heads(states: Tensor) -> Tensor:
    """Return the states of all heads, where each rank has some of them: `(..., D / ranks)` -> `(..., D)`.

    So every rank has the same, and makes the same plan.
    """
    if get_tensor_model_parallel_world_size() == 1:
        return states
    return tensor_model_parallel_all_gather(states.contiguous(), dim=-1)
