"""Gemma 4, tiny: each token is the mean of 3 x 3 patches; windows, images that look both ways, inputs per layer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from foveate.layout import Layout, Segment
from rows.row import DECODER, ENCODER, INSTALLED, Clips, Row, enlarged, grid, picture

IMAGE, BEGIN, END, VIDEO, AUDIO, BEGIN_AUDIO, END_AUDIO = 5, 6, 7, 8, 9, 10, 11
PATCH, MERGE = 4, 3
SIDE = PATCH * MERGE
GRIDS = {"A": (4, 6), "B": (5, 4), "C": (3, 7)}
"""Rows and columns of the tokens of each picture."""
CLIPS = {"V": (3, 2, 3), "W": (2, 3, 2), "X": (6, 2, 2)}
"""Frames of each clip, and rows and columns of their tokens."""
KINDS = ("sliding_attention", "full_attention", "full_attention")


def make_gemma4(
    window: int = 512,
    directions: str | None = "vision",
    kinds: tuple[str, ...] = KINDS,
    shared: int = 0,
    hears: bool = False,
    **more: Any,
) -> nn.Module:
    """A tiny model; `kinds` are those of its layers, the last `shared` of which read keys of earlier ones."""
    from transformers import (
        Gemma4AudioConfig,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4TextConfig,
        Gemma4VisionConfig,
    )

    audio: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "output_proj_dims": 32}

    sizes: dict[str, Any] = {**DECODER, "num_hidden_layers": len(kinds)}
    options: dict[str, Any] = {"hidden_size_per_layer_input": 8, "attention_k_eq_v": True, **more}
    model = Gemma4ForConditionalGeneration(
        Gemma4Config(
            vision_config=Gemma4VisionConfig(
                **ENCODER,
                num_key_value_heads=4,
                head_dim=8,
                patch_size=PATCH,
                pooling_kernel_size=MERGE,
                position_embedding_size=1024,
            ),
            text_config=Gemma4TextConfig(
                **sizes,
                head_dim=16,
                global_head_dim=32,
                num_global_key_value_heads=1,
                sliding_window=window,
                layer_types=list(kinds),
                num_kv_shared_layers=shared,
                use_bidirectional_attention=directions,  # pyright: ignore
                vocab_size_per_layer_input=DECODER["vocab_size"],
                **options,
            ),
            audio_config=Gemma4AudioConfig(**audio, subsampling_conv_channels=[128, 4]) if hears else None,
            image_token_id=IMAGE,
            boi_token_id=BEGIN,
            eoi_token_id=END,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.vision_tower.patch_embedder.position_embedding_table.normal_(std=0.3)  # all start alike
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.fill_(0.3)  # scores aren't scaled, so a random model would look at one token alone
    return model


def between_marks(layout: Layout) -> list[int]:
    return [BEGIN, *[IMAGE] * layout.total, END]


def pixels_of(letter: str) -> Tensor:
    """A picture with values from 0 to 1, `(3, height, width)`."""
    rows, columns = GRIDS[letter]
    return picture(letter, 3, rows * SIDE, columns * SIDE).sigmoid()


def patches(image: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch, row by row, its pixels with their channels together; and its column and row."""
    _, height, width = image.shape
    found, places = [], []
    for top in range(0, height, PATCH):
        for left in range(0, width, PATCH):
            found.append(image[:, top : top + PATCH, left : left + PATCH].permute(1, 2, 0).flatten())
            places.append([left // PATCH, top // PATCH])
    return torch.stack(found), torch.tensor(places)


def packed(images: list[Tensor]) -> dict[str, Tensor]:
    cut = [patches(image) for image in images]
    most = max(len(places) for _, places in cut)
    return {
        "pixel_values": torch.stack([pad(values, (0, 0, 0, most - len(values))) for values, _ in cut]),
        "image_position_ids": torch.stack([pad(places, (0, 0, 0, most - len(places)), value=-1) for _, places in cut]),
    }


def gemma4_pixels(letters: str) -> dict[str, Tensor]:
    return packed([pixels_of(letter) for letter in letters])


def gemma4_clips(letters: str) -> dict[str, Tensor]:
    frames = [
        picture(chr(ord(letter) + 7 * frame), 3, CLIPS[letter][1] * SIDE, CLIPS[letter][2] * SIDE).sigmoid()
        for letter in letters
        for frame in range(CLIPS[letter][0])
    ]
    pixels, positions = packed(frames).values()
    counts = torch.tensor([CLIPS[letter][0] for letter in letters])
    return {"pixel_values_videos": pixels, "video_position_ids": positions, "num_frames_per_video": counts}


def frames_with_times(layout: Layout) -> list[int]:
    """Each frame between marks, after its time."""
    ids: list[int] = []
    for frame, length in enumerate(layout.run_lengths):
        ids += [20 + frame, BEGIN, *[VIDEO] * length, END]
    return ids


def of_tokens(values: Tensor, places: Tensor) -> Tensor:
    """What the patches of an image have, `(P, ...)`, by visual token: `(N, 9, ...)`."""
    columns, rows = (places.amax(0) + 1).tolist()
    tokens = []
    for row in range(0, rows, MERGE):
        for column in range(0, columns, MERGE):
            own = [(row + down) * columns + column + right for down in range(MERGE) for right in range(MERGE)]
            tokens.append(values[own])
    return torch.stack(tokens)


def real(inputs: dict[str, Tensor]) -> list[Tensor]:
    """The column and row of each patch of each image, without padding."""
    return [places[places[:, 0] >= 0] for places in inputs["image_position_ids"]]


def attention_of_tokens(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of the map, summed over the rows of patches that are real, as a share of all."""
    found = []
    for weights, places in zip(maps[0].mean(1), real(inputs)):
        count = len(places)
        found.append(of_tokens(weights[:count, :count].sum(0), places).sum(1) / count)
    return found


def keys_of_tokens(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_norm(attention.k_proj(hidden).unflatten(-1, (4, 8)))
    return [of_tokens(key[: len(places)], places).mean(1) for key, places in zip(keys, real(inputs))]


def shrunk(letter: str, rows: int, columns: int) -> Tensor:
    return interpolate(pixels_of(letter)[None], size=(rows * SIDE, columns * SIDE), mode="area")


def smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    return packed([shrunk(letter, rows, columns)[0]])


def exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    return model.model.get_image_features(**smaller(letter, rows, columns), return_dict=True).pooler_output[0]


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    whole = enlarged(shrunk(letter, rows, columns), *pixels_of(letter).shape[1:])[0]
    return model.model.get_image_features(**packed([whole]), return_dict=True).pooler_output[0]


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|image|>": IMAGE, "<|image>": BEGIN, "<image|>": END,
    "<|video|>": VIDEO, "<|audio|>": AUDIO, "<|audio>": BEGIN_AUDIO, "<audio|>": END_AUDIO,
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


SPECIAL = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip
"""What the processor asks the tokenizer for."""
CLIP_LAYOUTS = {
    letter: Layout((Segment(t, h, w),), runs=(h * w,) * t, times=tuple(range(t))) for letter, (t, h, w) in CLIPS.items()
}


def gemma4_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    make: Any = Gemma4ImageProcessor if backend == "torchvision" else Gemma4ImageProcessorPil
    tokenizer._set_model_specific_special_tokens(SPECIAL)
    images = make(patch_size=PATCH, pooling_kernel_size=MERGE)
    clips = Gemma4VideoProcessor(patch_size=PATCH, pooling_kernel_size=MERGE)  # pyright: ignore
    return Gemma4Processor(Gemma4AudioFeatureExtractor(), images, tokenizer, clips, chat_template=CHAT)


ROW = Row(
    "gemma4",
    make_gemma4,
    image_token=IMAGE,
    pictures={letter: grid(*shape) for letter, shape in GRIDS.items()},
    pixels=gemma4_pixels,
    token_types=False,
    types=("mm_token_type_ids", 1),
    attention=attention_of_tokens,
    keys=keys_of_tokens,
    resized={"exact": exact, "enlarge": enlarged_again},
    smaller=smaller,
    written=between_marks,
    clips=Clips(VIDEO, CLIP_LAYOUTS, gemma4_clips, frames_with_times) if INSTALLED >= (5, 20) else None,
    uncounted=0.06,  # images of a call are filled up to the largest
    unanswerable=(VIDEO, AUDIO),
    offloads=False,  # the core reads the embedding of padding itself, which accelerate has not loaded
    words=WORDS,
    processor=gemma4_processor,
)
