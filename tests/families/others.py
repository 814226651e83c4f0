"""Tiny random models of architectures that no family describes, and inputs for them.

A model joins with one entry of `ALL`; `OTHERS` are those that the installed transformers has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from rows import Row, grid, picture
from rows.qwen import QWEN_PICTURES, qwen_patches, qwen_picture, qwen_pixels
from rows.row import INSTALLED
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
        takes_positions: whether its `generate` passes position ids on.
        reading_experts: whether the processor also returns `moe_mm_token_type_ids`, which experts read.
        since: the first version of transformers whose model can be used.
    """

    token_types: bool = False
    attention: Any = None
    keys: Any = None
    resized: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    processor: Any = None
    rounding: float = 2e-6
    takes_positions: bool = True
    reading_experts: bool = False
    since: tuple[int, int] = (5, 19)

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        model = super().model(attention, dtype)
        # A random model may answer with placeholders, which even the dense model then can't read again.
        model.generation_config.suppress_tokens = list(range(3, 12))
        return model

    def inputs(self, *prompts: str, side: str = "left") -> dict[str, Tensor]:
        inputs = super().inputs(*prompts, side=side)
        if self.reading_experts:
            inputs["moe_mm_token_type_ids"] = inputs["mm_token_type_ids"].clone()
        return inputs


def pixels(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 84, 84) for letter in letters])}


def sized(letters: str) -> dict[str, Tensor]:
    return pixels(letters) | {"image_sizes": torch.tensor([[84, 84]] * len(letters))}


def large(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([picture(letter, 3, 112, 112) for letter in letters])}


def high_resolution(letters: str) -> dict[str, Tensor]:
    return pixels(letters) | {"high_res_pixel_values": large(letters)["pixel_values"]}


def patched(letters: str) -> dict[str, Tensor]:
    """Patches of 6 x 6, with their columns and rows, as Gemma 4 takes them."""
    patches = nn.functional.unfold(pixels(letters)["pixel_values"], 14, stride=14).transpose(1, 2)
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(1)
    return {"pixel_values": patches, "image_position_ids": places.expand(len(letters), -1, -1)}


def grids(letters: str) -> dict[str, Tensor]:
    return qwen_patches([picture(letter, 3, 84, 84) for letter in letters])


def rastered(letters: str) -> dict[str, Tensor]:
    """Patches row by row, as PaddleOCR-VL takes them."""
    images = [qwen_picture(letter) for letter in letters]
    patches = [nn.functional.unfold(image[None], 14, stride=14)[0].T.view(-1, 3, 14, 14) for image in images]
    return {"pixel_values": torch.cat(patches), "image_grid_thw": qwen_pixels(letters)["image_grid_thw"]}


def single_frames(letters: str) -> dict[str, Tensor]:
    """Patches of one frame, as ERNIE 4.5 VL takes them."""
    inputs = qwen_pixels(letters)
    return inputs | {"pixel_values": inputs["pixel_values"].view(-1, 3, 2, 196)[:, :, 0].flatten(1)}


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


def of_grids(
    name: str, make: Callable[[], nn.Module], image: Callable[[str], dict[str, Tensor]], **facts: Any
) -> Other:
    """A row of a model with positions of Qwen2-VL, in which pictures have grids of different size."""
    return Other(name, make, 5, QWEN_PICTURES, image, token_types=True, **facts)


HEADLESS = {"vision": {"vision_use_head": False}}


def llava_with_cls() -> nn.Module:
    """Its encoder's [CLS] is a visual token, too, and no family takes that."""
    return maker("Llava", "CLIPVisionConfig", "Qwen2Config", image_token_id=5, vision_feature_select_strategy="full")()


SAM = {
    "image_size": 112,
    "patch_size": 4,
    "mlp_dim": 64,
    "output_channels": 16,
    "window_size": 4,
    "global_attn_indexes": [2],
    "initializer_range": 0.02,
}

QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
GEMMA4 = {
    "sliding_window": 512,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "global_head_dim": 16,
}


def gemma4(**text: Any) -> Callable[[], nn.Module]:
    return maker(
        "Gemma4",
        "Gemma4VisionConfig",
        "Gemma4TextConfig",
        {
            "vision": {
                "num_key_value_heads": 4,
                "head_dim": 8,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            "text": GEMMA4 | {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8} | text,
        },
        **GEMMA4_TOKENS,
    )


GEMMA4_TOKENS = {"image_token_id": 5, "video_token_id": 6, "audio_token_id": 7, "boi_token_id": 9, "eoi_token_id": 10}


def deepseek_ocr2() -> nn.Module:
    from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration

    sam = SAM | {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sam |= {"global_attn_indexes": [1], "downsample_channels": [32, 32]}
    encoder = VISION | {"num_key_value_heads": 4, "vocab_size": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    config = DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder},
        text_config=TEXT | experts | {"mlp_layer_types": ["dense", "sparse", "dense"], "moe_intermediate_size": 32},
        image_token_id=5,
    )
    model = DeepseekOcr2ForConditionalGeneration(config)
    model.model.view_separator.data.normal_()
    return model


def with_crops(letters: str) -> dict[str, Tensor]:
    small = nn.functional.interpolate(pixels(letters)["pixel_values"], size=(64, 64))
    crops = {"pixel_values_local": small.flip(2), "num_local_patches": torch.ones(len(letters), dtype=torch.int64)}
    return {"pixel_values": small} | crops


M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
ERNIE_TOKENS = {"image_token_id": 5, "video_token_id": 6, "image_start_token_id": 7, "image_end_token_id": 8}


def ernie() -> nn.Module:
    from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

    experts = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": [48, 32]}
    text = (
        TEXT
        | experts
        | {"rope_parameters": M_ROPE | {"mrope_section": [3, 3, 2]}, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    )
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
    return Ernie4_5_VLMoeForConditionalGeneration(
        Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **ERNIE_TOKENS)
    )


DEEPSEEK_OCR2 = other("deepseek_ocr2", deepseek_ocr2, 289, with_crops)
"""An image and its crop go through the encoder in two calls. Its many tokens are too slow for the whole suite."""

ALL = (
    other("llava_with_cls", llava_with_cls, 37),
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
        "deepseek_vl_hybrid",
        maker(
            "DeepseekVLHybrid",
            "SiglipVisionConfig",
            "LlamaConfig",
            HEADLESS,
            image_token_id=5,
            high_res_vision_config=SAM
            | {"model_type": "sam_vision_model", "num_hidden_layers": 3, "hidden_size": 32}
            | {"num_attention_heads": 4},
        ),
        36,
        high_resolution,
    ),
    other(
        "video_llava",
        maker("VideoLlava", "CLIPVisionConfig", "LlamaConfig", image_token_index=5, video_token_index=6),
        36,
        since=(5, 23),
    ),
    other(
        "exaone4_5",
        maker(
            "Exaone4_5_",
            "Exaone4_5_VisionConfig",
            "Exaone4Config",
            {
                "vision": QWEN_VISION | {"num_key_value_heads": 2},
                "text": {"sliding_window": 512, "sliding_window_pattern": 3},
            },
            image_token_id=5,
            video_token_id=6,
        ),
        9,
        grids,
        since=(5, 20),
        takes_positions=False,
    ),
    other(
        "hyperclovax_vision_v2",
        maker(
            "HyperCLOVAXVisionV2",
            "Qwen2_5_VLVisionConfig",
            "HyperCLOVAXConfig",
            {"vision": QWEN_VISION},
            image_token_id=5,
            video_token_id=6,
        ),
        9,
        grids,
        takes_positions=False,
    ),
    other(
        "gemma4", gemma4(use_bidirectional_attention="vision"), 9, patched, types=("mm_token_type_ids", 1), plain=False
    ),
    other(
        "gemma4_shared",
        gemma4(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2),
        9,
        patched,
        types=("mm_token_type_ids", 1),
        plain=False,
    ),
    of_grids(
        "paddleocr_vl",
        maker(
            "PaddleOCRVL",
            "PaddleOCRVisionConfig",
            "PaddleOCRTextConfig",
            {"vision": {"image_size": 112}, "text": {"rope_parameters": M_ROPE}},
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=7,
            vision_end_token_id=8,
        ),
        rastered,
        since=(5, 21),
    ),
    of_grids("ernie4_5_vl_moe", ernie, single_frames, reading_experts=True, plain=False),
)

OTHERS = tuple(row for row in ALL if row.since <= INSTALLED)
