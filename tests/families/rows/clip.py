"""What comes out of a CLIP encoder, written from the model's own weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rows.row import enlarged, picture


def llava_pixels(letters: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 84, 84) for letter in letters])}


def cls_attention(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS], without [CLS] itself."""
    return list(maps[0].mean(1)[:, 0, 1:])


def clip_keys(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(attention.k_proj(hidden)[:, 1:].unflatten(-1, (4, 8)))


def clip_interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """CLIP given a smaller picture, its position embeddings interpolated."""
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    return model.model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True).pooler_output[0]


def clip_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    return model.model.get_image_features(enlarged(small, 84, 84), return_dict=True).pooler_output[0]


LLAVA_WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": 5}

LLAVA_CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image> {% elif part.type == 'video' %}<video> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def llava_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = config.vision_config.image_size
    sizes: Any = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    images: Any = (CLIPImageProcessor if backend == "torchvision" else CLIPImageProcessorPil)(**sizes)
    return LlavaProcessor(images, tokenizer, **llava_options(config))


def llava_options(config: Any) -> dict[str, Any]:
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", "default"),
        "num_additional_image_tokens": 1,
        "chat_template": LLAVA_CHAT,
    }


CLIP_RESIZED = {"interpolate": clip_interpolated, "enlarge": clip_enlarged}
