"""What all tiny models of the GLM-V series share; their encoders take the patches of Qwen-VL."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rows.qwen import (
    QWEN_PICTURES,
    QWEN_RESIZED,
    QWEN_TEXT,
    attention_of_patches,
    counts_of,
    keys_of_patches,
    qwen_pixels,
    qwen_smaller,
)
from rows.row import Row

GLM_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 64,
    "image_size": 112,
    "patch_size": 14,
}

GLM_TEXT = QWEN_TEXT | {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 0.5,
    }
}

GLM_TOKENS = {
    "image_token_id": 5,
    "video_token_id": 6,
    "image_start_token_id": 7,
    "image_end_token_id": 8,
    "video_start_token_id": 9,
    "video_end_token_id": 10,
}

GLM_WORDS = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<|image|>": 5,
    "<|video|>": 6,
    "<|begin_of_image|>": 7,
    "<|end_of_image|>": 8,
    "<|begin_of_video|>": 9,
    "<|end_of_video|>": 10,
    "<|user|>": 11,
    "<|assistant|>": 12,
}

GLM_CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|> {% for part in turn.content %}"
    "{% if part.type == 'text' %}{{ part.text }} {% else %}<|begin_of_{{ part.type }}|><|{{ part.type }}|>"
    "<|end_of_{{ part.type }}|>{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def keys_behind_norm(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Before rotary embedding, averaged over the four patches of a token."""
    keys = attention.qkv(hidden).view(len(hidden), 3, 4, 8)[:, 1]
    size = keys.pow(2).mean(-1, keepdim=True).add(attention.k_norm.variance_epsilon).rsqrt()
    normed = keys * size * attention.k_norm.weight
    return list(normed.view(len(hidden) // 4, 4, 4, 8).mean(1).split(counts_of(inputs)))


def glm_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import (
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
        Glm46VImageProcessor,
        Glm46VProcessor,
        Glm46VVideoProcessor,
    )
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

    sizes: Any = {
        "patch_size": config.vision_config.patch_size,
        "size": {"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 80},
    }
    make: Any = (Glm4vProcessor, Glm4vImageProcessor, Glm4vImageProcessorPil, Glm4vVideoProcessor)
    if config.model_type in ("glm46v", "glm_ocr"):
        make = (Glm46VProcessor, Glm46VImageProcessor, Glm46VImageProcessorPil, Glm46VVideoProcessor)
    processor, quick, plain, clips = make
    images = (quick if backend == "torchvision" else plain)(**sizes)
    return processor(images, tokenizer, clips(**sizes), chat_template=GLM_CHAT)


def glm_row(name: str, make: Callable[[], nn.Module], **facts: Any) -> Row:
    """A row of the series; `facts` are what differs."""
    shared: dict[str, Any] = {
        "image_token": 5,
        "pictures": QWEN_PICTURES,
        "pixels": qwen_pixels,
        "token_types": True,
        "attention": attention_of_patches,
        "keys": keys_of_patches,
        "resized": QWEN_RESIZED,
        "words": GLM_WORDS,
        "processor": glm_processor,
        "smaller": qwen_smaller,
        "mixes_images": True,
        "one_frame": True,
    }
    return Row(name, make, **(shared | facts))


def spread(model: Any) -> Any:
    """Make position embeddings and norms differ from place to place, so that a wrong order shows."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.endswith("position_embedding.weight"):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    return model
