"""LLaVA-NeXT-Video, tiny: the crops of LLaVA-NeXT, and clips."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.layout import Layout, Segment
from rows.clip import LLAVA_WORDS, llava_options
from rows.llava_next import (
    LLAVA_NEXT_PICTURES,
    crop_attention,
    crop_keys,
    crops_enlarged,
    crops_interpolated,
    llava_next_pixels,
)
from rows.row import DECODER, ENCODER, Clips, Row, picture


def make_llava_next_video() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(**ENCODER, image_size=56, patch_size=14),
            text_config=LlamaConfig(**DECODER),
            image_token_index=5,
            video_token_index=6,
            image_grid_pinpoints=[[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
        )
    )


def next_video_clips(letters: str) -> dict[str, Tensor]:
    clips = [[picture(chr(ord(letter) + 7 * frame), 3, 56, 56) for frame in range(3)] for letter in letters]
    return {"pixel_values_videos": torch.stack([torch.stack(frames) for frames in clips])}


def llava_next_video_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    side = config.vision_config.image_size
    sizes: Any = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    make: Any = LlavaNextImageProcessor if backend == "torchvision" else LlavaNextImageProcessorPil
    images = make(**sizes, image_grid_pinpoints=config.image_grid_pinpoints)
    return LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**sizes), images, tokenizer, **llava_options(config))


CLIP = Layout((Segment(3, 2, 2),), times=(0, 1, 2))

ROW = Row(
    "llava_next_video",
    make_llava_next_video,
    image_token=5,
    pictures=LLAVA_NEXT_PICTURES,
    pixels=llava_next_pixels,
    token_types=False,
    attention=crop_attention,
    keys=crop_keys,
    resized={"interpolate": crops_interpolated, "enlarge": crops_enlarged},
    words=LLAVA_WORDS | {"<video>": 6},
    processor=llava_next_video_processor,
    clips=Clips(6, dict.fromkeys("VWX", CLIP), next_video_clips, lambda layout: [6] * layout.total),
)
