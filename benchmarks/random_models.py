"""Make models of real shapes with random weights, and prompts for them: speed does not depend on the weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.costmodel.model_config import load_config

PATCH = 14
IMAGE_TOKEN = 5
LLAVAS: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    },
    "0.5B": {
        "text": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
}
"""A LLaVA that was not released: a decoder of Qwen2-0.5B's shape after CLIP-L/14."""
REAL = ("llava-1.5-7b", "qwen2.5-vl-7b", "qwen3-vl-8b")
"""Published configurations."""
TINY = {
    "tiny-qwen": {
        "model_type": "qwen2_5_vl",
        "image_token_id": IMAGE_TOKEN,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": 32_064,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [2],
            "patch_size": 14,
        },
    }
}
MODELS = (*LLAVAS, *TINY, *REAL)


@dataclass(frozen=True)
class Pictures:
    """The images of a prompt: square, each with the same number of visual tokens.

    >>> Pictures.read("4x576"), Pictures.read("64").total
    (Pictures(count=4, tokens=576), 64)
    """

    count: int
    tokens: int

    @classmethod
    def read(cls, text: str) -> Pictures:
        count, times, tokens = text.rpartition("x")
        found = cls(int(count) if times else 1, int(tokens))
        if found.count < 1 or found.tokens < 1 or found.side**2 != found.tokens:
            raise ValueError(f"{text} is no square of tokens; 64, 576, 4x576 and 16384 are")
        return found

    @property
    def side(self) -> int:
        """Return the visual tokens along one side."""
        return round(self.tokens**0.5)

    @property
    def total(self) -> int:
        """Return the visual tokens of a prompt."""
        return self.count * self.tokens

    def __str__(self) -> str:
        return f"{self.count}x{self.tokens}" if self.count > 1 else f"{self.tokens}"


def make(name: str, pictures: Pictures, device: str, dtype: torch.dtype, share: bool) -> Any:
    """Return a model for such images, in evaluation mode.

    Args:
        name: one of `MODELS`.
        pictures: how large they are; a LLaVA's encoder is built for one size.
        device: where it is.
        dtype: the data type of its weights.
        share: one layer's weights for all layers of the decoder, and one for all of the encoder. So a model of 8
            billion parameters fits into a small machine; as a layer of it fits into no cache of a processor, each is
            read from memory all the same.
    """
    from transformers import AutoModelForImageTextToText

    config = configuration(name, pictures)
    full = [_depths(part) for part in (config.text_config, config.vision_config)]
    if share:
        _set_depths(
            config,
            [{field: value[:1] if isinstance(value, list) else 1 for field, value in each.items()} for each in full],
        )
    torch.manual_seed(0)
    with torch.device(device):
        network: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype).to(device, dtype).eval()
    if share:
        _set_depths(network.config, full)
        for layers, each in zip((decoder_layers(network), encoder_layers(network)), full, strict=True):
            _repeat(layers, next(value for value in each.values() if isinstance(value, int)))
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    return network


def decoder_layers(network: Any) -> nn.ModuleList:
    """Return the layers of the language model."""
    return network.model.language_model.layers


def encoder_layers(network: Any) -> nn.ModuleList:
    """Return the layers of the encoder."""
    inner = network.model
    return inner.visual.blocks if hasattr(inner, "visual") else inner.vision_tower.encoder.layers


def prompt(network: Any, pictures: Pictures, batch: int, text_tokens: int) -> dict[str, Tensor]:
    """Return inputs of text, images and text as a processor does; `text_tokens` is at least the number of images."""
    config = network.config
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(100, 30_000, (batch, text_tokens), generator=generator)
    image = torch.full((batch, pictures.tokens), config.image_token_id)
    pieces: list[Tensor] = []
    # One text token between two pictures: there are models that tell them apart by that.
    before = max(0, text_tokens - pictures.count + 1) // 2
    for number in range(pictures.count):
        pieces += [text[:, before + number - 1 : before + number] if number else text[:, :before], image]
    ids = torch.cat([*pieces, text[:, before + pictures.count - 1 :]], dim=1)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    count = batch * pictures.count
    if hasattr(config.vision_config, "spatial_merge_size"):
        vision = config.vision_config
        side = pictures.side * vision.spatial_merge_size
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(count * side**2, values, generator=generator)
        found["image_grid_thw"] = torch.tensor([[1, side, side]] * count)
        found["mm_token_type_ids"] = (ids == config.image_token_id).int()
    else:
        side = pictures.side * PATCH
        pixels = torch.randn(count, 3, side, side, generator=generator)
    weight = network.get_input_embeddings().weight
    found["pixel_values"] = pixels.to(weight.dtype)
    return {name: value.to(weight.device) for name, value in found.items()}


def configuration(name: str, pictures: Pictures) -> Any:
    """Return the configuration of one of `MODELS`, for images of this size."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    if name in LLAVAS:
        shape = LLAVAS[name]
        config: Any = LlavaConfig(
            vision_config=CLIPVisionConfig(**shape["vision"]),
            text_config=LlamaConfig(**shape["text"], vocab_size=32_064),
            image_token_id=IMAGE_TOKEN,
        )
    else:
        config = load_config(TINY.get(name, name))
    if config.model_type == "llava":
        config.vision_config.patch_size = PATCH
        config.vision_config.image_size = PATCH * pictures.side
    elif "mrope_section" not in config.text_config.rope_parameters:
        # Published configurations hold dimensions alone; these are the released models' shares of a head of 128.
        shares = [24, 20, 20] if config.model_type == "qwen3_vl" else [16, 24, 24]
        config.text_config.rope_parameters["mrope_section"] = shares
    config.text_config.max_position_embeddings = max(32_768, config.text_config.max_position_embeddings)
    return config


def _depths(part: Any) -> dict[str, Any]:
    """Return the fields of a configuration that set numbers of layers."""
    names = ("num_hidden_layers", "depth", "layer_types")
    return {name: getattr(part, name) for name in names if getattr(part, name, None) is not None}


def _set_depths(config: Any, depths: list[dict[str, Any]]) -> None:
    for part, fields in zip((config.text_config, config.vision_config), depths, strict=True):
        for field, value in fields.items():
            setattr(part, field, value)


def _repeat(layers: nn.ModuleList, times: int) -> None:
    """Return copies of the first layer that share its weights."""
    first = layers[0]
    for number in range(len(layers), times):
        layer = copy.deepcopy(first, {id(weight): weight for weight in first.parameters()})
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # pyright: ignore[reportAttributeAccessIssue]
        layers.append(layer)
