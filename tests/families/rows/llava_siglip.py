"""LLaVA with SigLIP, tiny: every row of the encoder is a patch."""

from typing import Any

from torch import nn

from rows.clip import CLIP_RESIZED, LLAVA_CHAT, LLAVA_WORDS, llava_pixels
from rows.row import DECODER, ENCODER, Row, grid
from rows.siglip import received, siglip_images, siglip_keys


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


def siglip_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import LlavaProcessor

    return LlavaProcessor(
        siglip_images(config, backend),
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
