"""Gemma 4 Unified, tiny: squares of pixels become tokens without an encoder; windows, images that look both ways."""

from typing import Any

import torch
from torch import Tensor, nn

from rows import gemma4
from rows.gemma4 import (
    AUDIO,
    BEGIN,
    END,
    IMAGE,
    KINDS,
    MERGE,
    PATCH,
    VIDEO,
    WORDS,
    between_marks,
    frames_with_times,
)
from rows.row import DECODER, INSTALLED, Clips, Row, enlarged, grid

READS_CLIPS = INSTALLED >= (5, 23)
"""Whether the dense model takes the inputs of clips that its own `get_video_features` needs."""


def make_gemma4_unified(window: int = 512, directions: str | None = "vision") -> nn.Module:
    from transformers import (
        Gemma4UnifiedConfig,
        Gemma4UnifiedForConditionalGeneration,
        Gemma4UnifiedTextConfig,
        Gemma4UnifiedVisionConfig,
    )

    heads: dict[str, Any] = {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1}
    model: Any = Gemma4UnifiedForConditionalGeneration(
        Gemma4UnifiedConfig(
            vision_config=Gemma4UnifiedVisionConfig(
                patch_size=PATCH, pooling_kernel_size=MERGE, mm_embed_dim=32, mm_posemb_size=64, output_proj_dims=32
            ),
            text_config=Gemma4UnifiedTextConfig(
                **DECODER,
                **heads,
                sliding_window=window,
                layer_types=list(KINDS),
                attention_k_eq_v=True,
                use_bidirectional_attention=directions,  # pyright: ignore
            ),
            image_token_id=IMAGE,
            boi_token_id=BEGIN,
            eoi_token_id=END,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.embed_vision.pos_embedding.normal_(std=0.3)  # all start alike
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.fill_(0.3)  # scores aren't scaled, so a random model would look at one token alone
    return model


def joined(inputs: dict[str, Tensor], pixels: str, positions: str) -> dict[str, Tensor]:
    """Patches joined to squares of 3 x 3 of them, as this model's processors do after those of Gemma 4."""
    values, places = [], []
    most = 0
    for patches, own in zip(inputs[pixels], inputs[positions]):
        real = own[own[:, 0] >= 0]
        columns, rows = (real.amax(0) + 1).tolist()
        shape = (rows // MERGE, MERGE, columns // MERGE, MERGE, PATCH, PATCH * 3)
        squares = patches[: len(real)].reshape(shape).permute(0, 2, 1, 4, 3, 5).flatten(0, 1).flatten(1)
        values.append(squares)
        places.append(real.reshape(rows, columns, 2)[::MERGE, ::MERGE].flatten(0, 1) // MERGE)
        most = max(most, len(squares))
    fill = torch.nn.functional.pad
    return {
        **inputs,
        pixels: torch.stack([fill(each, (0, 0, 0, most - len(each))) for each in values]),
        positions: torch.stack([fill(each, (0, 0, 0, most - len(each)), value=-1) for each in places]),
    }


def packed(images: list[Tensor]) -> dict[str, Tensor]:
    return joined(gemma4.packed(images), "pixel_values", "image_position_ids")


def pixels(letters: str) -> dict[str, Tensor]:
    return packed([gemma4.pixels_of(letter) for letter in letters])


def clips(letters: str) -> dict[str, Tensor]:
    return joined(gemma4.gemma4_clips(letters), "pixel_values_videos", "video_position_ids")


def smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    return packed([gemma4.shrunk(letter, rows, columns)[0]])


def exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    return model.model.get_image_features(**smaller(letter, rows, columns), return_dict=True).pooler_output[0]


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    whole = enlarged(gemma4.shrunk(letter, rows, columns), *gemma4.pixels_of(letter).shape[1:])[0]
    return model.model.get_image_features(**packed([whole]), return_dict=True).pooler_output[0]


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import (
        Gemma4UnifiedAudioFeatureExtractor,
        Gemma4UnifiedImageProcessor,
        Gemma4UnifiedProcessor,
        Gemma4UnifiedVideoProcessor,
    )

    tokenizer._set_model_specific_special_tokens(gemma4.SPECIAL)
    images = Gemma4UnifiedImageProcessor(patch_size=PATCH, pooling_kernel_size=MERGE)  # pyright: ignore
    frames = Gemma4UnifiedVideoProcessor(patch_size=PATCH, pooling_kernel_size=MERGE)  # pyright: ignore
    return Gemma4UnifiedProcessor(
        Gemma4UnifiedAudioFeatureExtractor(), images, tokenizer, frames, chat_template=gemma4.CHAT
    )


ROW = Row(
    "gemma4_unified",
    make_gemma4_unified,
    image_token=IMAGE,
    pictures={letter: grid(*shape) for letter, shape in gemma4.GRIDS.items()},
    pixels=pixels,
    token_types=False,
    types=("mm_token_type_ids", 1),
    attention=None,
    keys=None,
    resized={"exact": exact, "enlarge": enlarged_again},
    smaller=smaller,
    written=between_marks,
    clips=Clips(VIDEO, gemma4.CLIP_LAYOUTS, clips, frames_with_times) if READS_CLIPS else None,
    uncounted=0.06,  # images of a call are filled up to the largest
    unanswerable=(VIDEO, AUDIO),
    words=WORDS,
    processor=processor,
)
