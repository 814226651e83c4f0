"""LLaVA-OneVision, tiny: the crops of LLaVA-NeXT, seen by SigLIP."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment, Structural
from rows.clip import LLAVA_CHAT, LLAVA_WORDS
from rows.llava_next import (
    LLAVA_NEXT_PICTURES,
    LLAVA_NEXT_SIZES,
    llava_next_crops,
    llava_next_pixels,
    of_pictures,
    smaller_tiles,
    with_newlines,
)
from rows.row import DECODER, ENCODER, Clips, Row, enlarged, picture


def make_llava_onevision() -> nn.Module:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                **ENCODER,
                image_size=56,
                patch_size=14,
                vision_use_head=False,
            ),
            text_config=Qwen2Config(
                **DECODER,
            ),
            image_token_index=5,
            video_token_index=6,
            image_grid_pinpoints=[[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
        )
    )


def received_in_crops(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each crop's map, summed, as a share of all."""
    received = [[crop[:, column].sum() / 16 for column in range(16)] for crop in maps[0].mean(1)]
    return of_pictures(torch.tensor(received), inputs)


def keys_in_crops(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return of_pictures(attention.k_proj(hidden).unflatten(-1, (4, 8)), inputs)


def small_crops(letter: str, rows: int, columns: int) -> Tensor:
    return interpolate(llava_next_crops(letter), size=(rows * 14, columns * 14), mode="area")


def crops_interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """SigLIP given smaller crops; as much of the tiles is padding as at full size."""
    small = small_crops(letter, rows, columns)
    hidden = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    projected = model.model.multi_modal_projector(hidden[-1])
    return with_newlines(model, projected, smaller_tiles(letter, rows, columns))


def crops_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(small_crops(letter, rows, columns), 56, 56)[None]
    sizes = torch.tensor([LLAVA_NEXT_SIZES[letter]])
    return model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output[0]


def llava_onevision_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    side = config.vision_config.image_size
    size: Any = {"height": side, "width": side}
    make: Any = LlavaOnevisionImageProcessor if backend == "torchvision" else LlavaOnevisionImageProcessorPil
    return LlavaOnevisionProcessor(
        make(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=LLAVA_CHAT,
    )


def onevision_clips(letters: str) -> dict[str, Tensor]:
    clips = [[picture(chr(ord(letter) + 7 * frame), 3, 56, 56) for frame in range(3)] for letter in letters]
    return {"pixel_values_videos": torch.stack([torch.stack(frames) for frames in clips])}


CLIP = Layout((Segment(3, 2, 2),), (Structural(12, 0, 12),), times=(0, 1, 2))

ROW = Row(
    "llava_onevision",
    make_llava_onevision,
    image_token=5,
    pictures=LLAVA_NEXT_PICTURES,
    pixels=llava_next_pixels,
    token_types=False,
    attention=received_in_crops,
    keys=keys_in_crops,
    resized={"interpolate": crops_interpolated, "enlarge": crops_enlarged},
    words=LLAVA_WORDS | {"<video>": 6},
    clips=Clips(6, dict.fromkeys("VWX", CLIP), onevision_clips, lambda layout: [6] * layout.total),
    processor=llava_onevision_processor,
)
