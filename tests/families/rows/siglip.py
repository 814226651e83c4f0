"""What comes out of a SigLIP encoder, written from the model's own weights."""

from typing import Any

import torch
from torch import Tensor


def received(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of the map, summed, as a share of all."""
    count = maps[0].shape[-1]
    return [torch.stack([image[:, column].sum() for column in range(count)]) / count for image in maps[0].mean(1)]


def siglip_keys(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(attention.k_proj(hidden).unflatten(-1, (4, 8)))


def siglip_images(config: Any, backend: str) -> Any:
    from transformers import SiglipImageProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = config.vision_config.image_size
    make: Any = SiglipImageProcessor if backend == "torchvision" else SiglipImageProcessorPil
    return make(size={"height": side, "width": side})
