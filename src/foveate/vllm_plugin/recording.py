"""What methods ask for besides features: queries and keys of vLLM's encoders, and the text of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from foveate.serving import ServedSpec


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


def embedded_texts(decoder: Any, specs: Sequence[ServedSpec], ids: Sequence[Tensor] | None) -> list[Tensor] | None:
    """Return the text of the prompt of each image as the decoder gets it, `(T, D)`; None if no spec reads it.

    Args:
        decoder: the language model.
        specs: per image.
        ids: per image `(T,)` int64; None if no spec of the server reads it.
    """
    if not any(spec.reads_text for spec in specs):
        return None
    assert ids is not None
    device = next(decoder.parameters()).device
    return [
        decoder.embed_input_ids(each.to(device)) if spec.reads_text else torch.empty(0, device=device)
        for spec, each in zip(specs, ids, strict=True)
    ]
