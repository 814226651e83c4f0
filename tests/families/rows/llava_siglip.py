"""LLaVA with SigLIP, tiny: every row of the encoder is a patch."""

from typing import Any

import torch
from torch import Tensor, nn

from rows.clip import CLIP_RESIZED, LLAVA_CHAT, LLAVA_WORDS, llava_pixels
from rows.row import DECODER, ENCODER, Row, grid


def make_llava_siglip(head: bool = False) -> nn.Module:
    """LLaVA-Interleave has no pooling head; other checkpoints have one, whose output nothing reads."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=SiglipVisionConfig(
                **ENCODER,
                image_size=84,
                patch_size=14,
                vision_use_head=head,
            ),
            text_config=Qwen2Config(
                **DECODER,
            ),
            image_token_id=5,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )


def received(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of the map, summed, as a share of all."""
    return [torch.stack([image[:, column].sum() for column in range(36)]) / 36 for image in maps[0].mean(1)]


def siglip_keys(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(attention.k_proj(hidden).unflatten(-1, (4, 8)))


def siglip_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import LlavaProcessor, SiglipImageProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = config.vision_config.image_size
    make: Any = SiglipImageProcessor if backend == "torchvision" else SiglipImageProcessorPil
    return LlavaProcessor(
        make(size={"height": side, "width": side}),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=LLAVA_CHAT,
    )


ROW = Row(
    "llava_siglip",
    make_llava_siglip,
    image_token=5,
    pictures={letter: grid(6, 6) for letter in "ABC"},
    pixels=llava_pixels,
    token_types=False,
    attention=received,
    keys=siglip_keys,
    resized=CLIP_RESIZED,
    words=LLAVA_WORDS,
    processor=siglip_processor,
)
