"""PaliGemma, tiny: images and question see each other in both directions."""

from typing import Any

from torch import nn

from rows.clip import CLIP_RESIZED, llava_pixels
from rows.row import DECODER, ENCODER, Row, grid
from rows.siglip import received, siglip_images, siglip_keys


def make_paligemma(window: int | None = None) -> nn.Module:
    """PaliGemma 1; with a window, PaliGemma 2, whose decoder has one in every other layer."""
    from transformers import (
        Gemma2Config,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    text = GemmaConfig(**DECODER, head_dim=16)
    if window is not None:
        text = Gemma2Config(**DECODER, head_dim=16, sliding_window=window, final_logit_softcapping=None)
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**ENCODER, image_size=84, patch_size=14, vision_use_head=False),
            text_config=text,
            image_token_id=5,
            projection_dim=64,
            tie_word_embeddings=False,
        )
    )


CHAT = (
    "{% for turn in messages %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
)


def paligemma_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import PaliGemmaProcessor

    images = siglip_images(config, backend)
    images.image_seq_length = 36
    tokenizer.bos_token = "<s>"
    return PaliGemmaProcessor(images, tokenizer, chat_template=CHAT)


ROW = Row(
    "paligemma",
    make_paligemma,
    image_token=5,
    pictures={letter: grid(6, 6) for letter in "ABC"},
    pixels=llava_pixels,
    token_types=False,
    types=("token_type_ids", 0),
    later_type=1,
    blocks_after_cache=False,
    attention=received,
    keys=siglip_keys,
    resized=CLIP_RESIZED,
    words={"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": 5},
    processor=paligemma_processor,
)
