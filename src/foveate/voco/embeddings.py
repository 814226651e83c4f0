"""The decoder's token embeddings, and the first embeddings of VoCo tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.families import Family


def embedding_table(family: Family) -> Any:
    """Return the module that embeds the decoder's vocabulary."""
    return family.core.get_input_embeddings()  # pyright: ignore[reportCallIssue]


def decoder_device_and_dtype(family: Family) -> tuple[torch.device, torch.dtype]:
    """Return where and in which dtype the decoder takes keys and values: its embeddings'. The encoder's may differ."""
    with torch.no_grad():
        embedded = family.embed(torch.zeros(1, dtype=torch.int64, device=family.device))
    return embedded.device, embedded.dtype


@torch.no_grad()
def embedded_vocabulary(family: Family) -> Float[Tensor, "V D"]:
    """Return the embeddings of all ids, `(V, D)`, as the decoder's own module makes them.

    Its weights alone may be quantised, offloaded or in another module.
    """
    count = int(embedding_table(family).num_embeddings)
    return family.embed(torch.arange(count, device=family.device))


def initial_embeddings(
    table: Float[Tensor, "V D"], count: int, seed: int, start: Sequence[int] | None
) -> Float[Tensor, "count D"]:
    """Return `(count, D)` embeddings to train VoCo tokens from, in float32 on the CPU.

    Args:
        table: `(V, D)`, the decoder's embeddings.
        count: how many.
        seed: for the random part.
        start: ids whose embeddings to begin with, repeated as often as needed; None begins at random.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator) * table.detach().float().std().item()
    if start is None:
        return noise
    ids = [start[number % len(start)] for number in range(count)]
    # A little noise, so that two that begin as the same token can become different.
    return table.detach()[ids].float().cpu() + 0.1 * noise
