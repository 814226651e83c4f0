"""LLaVA, tiny."""

from torch import nn

from rows.clip import CLIP_RESIZED, LLAVA_WORDS, clip_keys, cls_attention, llava_pixels, llava_processor
from rows.row import Row, grid


def make_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=84,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                vocab_size=128,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
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
