"""Tiny random models of architectures that no family describes, and inputs for them.

A model joins with one entry of `OTHERS`, or of `REFUSED` if it can't be right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rows import Row, grid, picture
from torch import Tensor, nn

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 84,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Other(Row):
    """A row of a model whose signals and ways to shrink are not known.

    Attributes:
        types: what `token_type_ids` are at placeholders, elsewhere 0; None for a processor that returns none.
        full_attention: whether dropping a token is masking it.
        plain: whether every layer of the decoder sees all earlier columns and none behind, so that steps can act there.
    """

    token_types: bool = False
    attention: Any = None
    keys: Any = None
    resized: Mapping[str, Any] = field(default_factory=dict)
    types: int | None = None
    full_attention: bool = True
    plain: bool = True

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        model = super().model(attention, dtype)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):  # Gemma 3's starts at zero
                weight.data.copy_(torch.randn(weight.shape, generator=generator))
        return model

    def inputs(self, *prompts: str, side: str = "left") -> dict[str, Tensor]:
        inputs = super().inputs(*prompts, side=side)
        if self.types is not None:
            inputs["token_type_ids"] = (inputs["input_ids"] == self.image_token).int() * self.types
        return inputs


def pixels(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 84, 84) for letter in letters])}


def sized(letters: str) -> dict[str, Tensor]:
    return pixels(letters) | {"image_sizes": torch.tensor([[84, 84]] * len(letters))}


def nested(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": pixels(letters)["pixel_values"][:, None]}


def base_and_tile(letters: str) -> dict[str, Tensor]:
    return {
        "pixel_values": nested(letters)["pixel_values"].repeat(1, 2, 1, 1, 1),
        "image_sizes": sized(letters)["image_sizes"],
    }


def large(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 112, 112) for letter in letters])}


def packed(letters: str) -> dict[str, Tensor]:
    patches = nn.functional.unfold(pixels(letters)["pixel_values"], 14, stride=14).transpose(1, 2)
    return {
        "pixel_values": patches,
        "spatial_shapes": torch.tensor([[6, 6]] * len(letters)),
        "pixel_attention_mask": torch.ones(len(letters), 36, dtype=torch.int64),
    }


def maker(
    name: str, vision: str, text: str, of: Mapping[str, Any] | None = None, **options: Any
) -> Callable[[], nn.Module]:
    """Makes the model `{name}ForConditionalGeneration` from its configurations in transformers.

    Args:
        name: of the architecture.
        vision: the class of its encoder's configuration.
        text: the class of its decoder's configuration.
        of: "vision" and "text": what those configurations say besides `VISION` and `TEXT`.
        options: what the model's own configuration says.
    """

    def make() -> nn.Module:
        import transformers

        more = of or {}
        config = getattr(transformers, f"{name}Config")(
            vision_config=getattr(transformers, vision)(**VISION | more.get("vision", {})),
            text_config=getattr(transformers, text)(**TEXT | more.get("text", {})),
            **options,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


def other(
    name: str,
    make: Callable[[], nn.Module],
    count: int,
    image: Callable[[str], dict[str, Tensor]] = pixels,
    **facts: Any,
) -> Other:
    """A row in which every picture is one row of `count` tokens."""
    return Other(name, make, 5, {letter: grid(1, count) for letter in "ABC"}, image, **facts)


HEADLESS = {"vision": {"vision_use_head": False}}
GEMMA = {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}


def gemma3(window: int) -> Callable[[], nn.Module]:
    return maker(
        "Gemma3",
        "SiglipVisionConfig",
        "Gemma3TextConfig",
        {"text": GEMMA | {"sliding_window": window}},
        image_token_id=5,
        mm_tokens_per_image=9,
        boi_token_index=9,
        eoi_token_index=10,
    )


def llava_with_siglip() -> nn.Module:
    return maker(
        "Llava", "SiglipVisionConfig", "Qwen2Config", HEADLESS, image_token_id=5, vision_feature_select_strategy="full"
    )()


SAM = {
    "image_size": 112,
    "patch_size": 4,
    "mlp_dim": 64,
    "output_channels": 16,
    "window_size": 4,
    "global_attn_indexes": [2],
    "initializer_range": 0.02,
}

OTHERS = (
    other("llava_with_siglip", llava_with_siglip, 36),
    other(
        "internvl",
        maker(
            "InternVL",
            "InternVLVisionConfig",
            "Qwen2Config",
            {"vision": {"image_size": [84, 84], "patch_size": [14, 14]}},
            image_token_id=5,
        ),
        9,
    ),
    other("gemma3", gemma3(512), 9, types=1, plain=False),
    other("gemma3_window", gemma3(8), 9, types=1, full_attention=False, plain=False),
    other(
        "paligemma",
        maker("PaliGemma", "SiglipVisionConfig", "GemmaConfig", image_token_id=5, projection_dim=64),
        36,
        types=0,
        plain=False,
    ),
    other(
        "llava_onevision",
        maker(
            "LlavaOnevision",
            "SiglipVisionConfig",
            "Qwen2Config",
            HEADLESS,
            image_token_index=5,
            video_token_index=6,
            image_grid_pinpoints=[[84, 84], [84, 168]],
        ),
        78,
        base_and_tile,
    ),
    other(
        "mistral3",
        maker(
            "Mistral3",
            "PixtralVisionConfig",
            "MistralConfig",
            {"vision": {"head_dim": 8}, "text": {"sliding_window": None}},
            image_token_index=5,
        ),
        9,
        sized,
    ),
    other("idefics3", maker("Idefics3", "Idefics3VisionConfig", "LlamaConfig", image_token_id=5), 9, nested),
    other("smolvlm", maker("SmolVLM", "SmolVLMVisionConfig", "LlamaConfig", image_token_id=5), 9, nested),
    other(
        "aya_vision",
        maker("AyaVision", "SiglipVisionConfig", "Cohere2Config", HEADLESS, image_token_index=5),
        9,
        plain=False,
    ),
    other(
        "cohere2_vision",
        maker(
            "Cohere2Vision",
            "SiglipVisionConfig",
            "Cohere2Config",
            HEADLESS,
            image_token_id=5,
            alignment_intermediate_size=64,
        ),
        9,
        plain=False,
    ),
    other(
        "got_ocr2",
        maker("GotOcr2", "GotOcr2VisionConfig", "Qwen2Config", {"vision": SAM}, image_token_index=5),
        49,
        large,
    ),
    other(
        "lighton_ocr",
        maker("LightOnOcr", "PixtralVisionConfig", "Qwen3Config", {"vision": {"head_dim": 8}}, image_token_id=5),
        9,
        sized,
    ),
    other(
        "janus",
        maker(
            "Janus",
            "JanusVisionConfig",
            "LlamaConfig",
            {"vision": {"projection_dim": 64, "mlp_ratio": 2}},
            image_token_id=5,
        ),
        36,
    ),
    other("deepseek_vl", maker("DeepseekVL", "SiglipVisionConfig", "LlamaConfig", HEADLESS, image_token_id=5), 36),
    other(
        "lfm2_vl",
        maker(
            "Lfm2Vl",
            "Siglip2VisionConfig",
            "Lfm2Config",
            {"vision": {"num_patches": 36}, "text": {"layer_types": ["conv", "full_attention", "conv"]}},
            image_token_id=5,
        ),
        9,
        packed,
        full_attention=False,
        plain=False,
    ),
)
