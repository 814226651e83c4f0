"""Write the embedded model as a model for clips: the same encoder, projector and decoder in a LLaVA-NeXT-Video."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from recipes.reference.build import build_tokenizer
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

VIDEO = "<video>"

CLIP_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The chat template: ``USER: <video>\\n{question} ASSISTANT: {answer}<eos>``."""


@torch.no_grad()
def as_clip_model(model: LlavaForConditionalGeneration, pool: int) -> LlavaNextVideoForConditionalGeneration:
    """The same weights as a LLaVA-NeXT-Video that averages `pool` x `pool` patches of a frame.

    The placeholder of clips is one more token, whose row is that of images.
    """
    text: Any = copy.deepcopy(model.config.text_config)
    text.vocab_size += 1
    vision: Any = copy.deepcopy(model.config.vision_config)
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        video_token_index=text.vocab_size - 1,
        image_grid_pinpoints=[[vision.image_size] * 2],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        spatial_pool_mode="average",
        spatial_pool_stride=pool,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        video_seq_length=(vision.image_size // vision.patch_size // pool) ** 2,
        tie_word_embeddings=True,
    )
    out = LlavaNextVideoForConditionalGeneration(config)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    rows = state["model.language_model.embed_tokens.weight"]
    state["model.language_model.embed_tokens.weight"] = torch.cat([rows, rows[4:5]])
    missing, unexpected = out.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight", "model.image_newline"}:
        raise ValueError(f"the weights don't fit: {missing} are missing and {unexpected} unknown")
    out.model.image_newline.zero_()
    out.tie_weights()
    out.generation_config.bos_token_id, out.generation_config.eos_token_id = 2, 3
    out.generation_config.pad_token_id = 0
    return out.eval()


def save_clip_directory(model: LlavaForConditionalGeneration, folder: Path, pool: int) -> None:
    """Write the model in 16 bits, the tokenizer with a placeholder for clips, and how frames become pixels."""
    half: Any = as_clip_model(model, pool)
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([VIDEO], special_tokens=True)
    tokenizer.chat_template = CLIP_TEMPLATE
    tokenizer.save_pretrained(folder)
    side = {"height": 192, "width": 192}
    frames = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    frames.save_pretrained(folder)
