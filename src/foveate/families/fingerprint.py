"""The name of a base model, so that what was made for it knows whose it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from foveate.families import family_of


def fingerprint(model: nn.Module) -> str:
    """Names a base model by its weights: sixteen hexadecimal digits over the shape and a sample of each tensor.

    Rounded to bfloat16, so that one model loaded in two dtypes has one name; LoRA weights don't count.
    """
    family = family_of(model)
    digest = hashlib.sha256()
    for name, weight in sorted(_own(family.core)):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.shape[0] // 64)][:64].to(torch.bfloat16).float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _own(core: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in core.named_parameters():
        if "lora_" not in name:
            yield name.replace(".base_layer", "").removeprefix("base_model.model."), weight
