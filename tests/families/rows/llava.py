"""LLaVA, tiny."""

from torch import nn

from rows.clip import CLIP_RESIZED, LLAVA_WORDS, clip_keys, cls_attention, llava_pixels, llava_processor
from rows.row import DECODER, ENCODER, Row, grid


def make_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **ENCODER,
                image_size=84,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                **DECODER,
            ),
            image_token_id=5,
        )
    )


ROW = Row(
    "llava",
    make_llava,
    image_token=5,
    pictures={letter: grid(6, 6) for letter in "ABC"},
    pixels=llava_pixels,
    token_types=False,
    attention=cls_attention,
    keys=clip_keys,
    resized=CLIP_RESIZED,
    words=LLAVA_WORDS,
    processor=llava_processor,
)
