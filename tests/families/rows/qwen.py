"""What comes out of a Qwen-VL encoder, and what all tiny models of the series share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout, Segment
from rows.row import DECODER, Clips, Row, enlarged, grid, picture

QWEN_TEXT = {
    **DECODER,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

QWEN_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}

QWEN2_5_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [2],
    "patch_size": 14,
}

QWEN3_5_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 14,
    "num_position_embeddings": 64,
}

QWEN3_VISION = QWEN3_5_VISION | {"deepstack_visual_indexes": [0, 1]}

QWEN3_TEXT = QWEN_TEXT | {
    "head_dim": 16,
    "rope_parameters": QWEN_TEXT["rope_parameters"] | {"mrope_interleaved": True},
}

QWEN3_5_TEXT = QWEN3_TEXT | {
    "rope_parameters": QWEN3_TEXT["rope_parameters"] | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

LINEAR_ATTENTION = {"full_attention": False, "plain": False, "takes_back": False}

QWEN_PICTURES = {"A": grid(4, 6), "B": grid(5, 3), "C": grid(3, 3)}


def qwen_picture(letter: str) -> Tensor:
    (segment,) = QWEN_PICTURES[letter].segments
    return picture(letter, 3, segment.h * 28, segment.w * 28)


def qwen_pixels(letters: str) -> dict[str, torch.Tensor]:
    return qwen_patches([qwen_picture(letter) for letter in letters])


def qwen_patches(images: list[Tensor]) -> dict[str, Tensor]:
    """Patches in the order that the processor puts them in, written out with loops."""
    patches, grids = [], []
    for image in images:
        rows, columns = (side // 14 for side in image.shape[1:])
        grids.append([1, rows, columns])
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                for down in (0, 1):
                    for right in (0, 1):
                        top, left = (row + down) * 14, (column + right) * 14
                        patch = image[:, top : top + 14, left : left + 14]
                        patches.append(patch[:, None].expand(-1, 2, -1, -1).flatten())
    return {"pixel_values": torch.stack(patches), "image_grid_thw": torch.tensor(grids)}


QWEN_CLIPS = {"V": (3, 2, 3), "X": (5, 2, 2), "W": (2, 3, 2)}
"""Frames of patches, rows and columns of tokens of each clip: one has more frames than rows and columns."""

QWEN_SECONDS = {"V": 0.5, "W": 1.0, "X": 0.7}
"""Seconds between two of its frames of patches."""


def qwen_clip_patches(letters: str) -> dict[str, Tensor]:
    """Patches of two frames each, in the order that the processor puts them in."""
    patches, grids = [], []
    for letter in letters:
        frames, rows, columns = QWEN_CLIPS[letter]
        grids.append([frames, 2 * rows, 2 * columns])
        for frame in range(frames):
            halves = []
            for half in (0, 1):
                shown = picture(chr(ord(letter) + 7 * (2 * frame + half)), 3, rows * 28, columns * 28)
                halves.append(qwen_patches([shown])["pixel_values"].view(-1, 3, 2, 196)[:, :, 0])
            patches.append(torch.stack(halves, dim=2).flatten(1))
    return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}


def qwen_timed_patches(letters: str) -> dict[str, Tensor]:
    seconds = torch.tensor([QWEN_SECONDS[letter] for letter in letters])
    return qwen_clip_patches(letters) | {"second_per_grid_ts": seconds}


def one_run(layout: Layout) -> list[int]:
    return [7, *[6] * layout.total, 8]


def runs_with_times(layout: Layout) -> list[int]:
    """The time of each frame, then the frame."""
    ids: list[int] = []
    for number, run in enumerate(layout.run_lengths):
        ids += [30 + number, 31, 7, *[6] * run, 8]
    return ids


def qwen_clips(rate: int | None = None) -> Clips:
    """Clips in one run; with a rate, times are so many times the seconds."""
    layouts: dict[str, Layout] = {}
    for letter, sizes in QWEN_CLIPS.items():
        step = 1 if rate is None else rate * QWEN_SECONDS[letter]
        layouts[letter] = Layout((Segment(*sizes),), times=tuple(int(frame * step) for frame in range(sizes[0])))
    return Clips(6, layouts, qwen_clip_patches if rate is None else qwen_timed_patches, one_run)


def qwen3_clips() -> Clips:
    """Clips in one run per frame."""
    layouts = {
        letter: Layout((Segment(*sizes),), runs=(sizes[1] * sizes[2],) * sizes[0], times=(0,) * sizes[0])
        for letter, sizes in QWEN_CLIPS.items()
    }
    return Clips(6, layouts, qwen_clip_patches, runs_with_times)


def token_order(grids: Tensor) -> Tensor:
    """Where each visual token stands in window order; windows are 2 x 2 tokens here. Written with loops."""
    places: dict[tuple[int, int, int], int] = {}
    for image, (_, rows, columns) in enumerate(grids.tolist()):
        rows, columns = rows // 2, columns // 2
        for top in range(0, rows, 2):
            for left in range(0, columns, 2):
                for row in range(top, min(top + 2, rows)):
                    for column in range(left, min(left + 2, columns)):
                        places[image, row, column] = len(places)
    return torch.tensor([places[key] for key in sorted(places)])


def attention_of_patches(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of every map, summed; then four patches to a token, as a share of all that the image gives."""
    tokens = torch.cat([each.mean(1).sum(1).flatten() for each in maps]).view(-1, 4).sum(1)
    return [image / (4 * len(image)) for image in tokens.split(counts_of(inputs))]


def attention_of_windows(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The same, where the encoder works on patches in window order."""
    tokens = torch.cat([each.mean(1).sum(1).flatten() for each in maps]).view(-1, 4).sum(1)
    ordered = tokens[token_order(inputs["image_grid_thw"])]
    return [image / (4 * len(image)) for image in ordered.split(counts_of(inputs))]


def keys_of_patches(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Before rotary embedding, averaged over the four patches of a token."""
    apart = hasattr(attention, "k")
    keys = attention.k(hidden) if apart else attention.qkv(hidden).unflatten(-1, (3, 32))[:, 1]
    keys = keys.view(len(hidden) // 4, 4, 4, 8).mean(1)
    return list(keys.split(counts_of(inputs)))


def keys_of_windows(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = torch.cat(keys_of_patches(attention, hidden, inputs))
    return list(keys[token_order(inputs["image_grid_thw"])].split(counts_of(inputs)))


def counts_of(inputs: dict[str, Tensor]) -> list[int]:
    return [int(patches) // 4 for patches in inputs["image_grid_thw"].prod(1)]


def qwen_smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    small = interpolate(qwen_picture(letter)[None], size=(rows * 28, columns * 28), mode="area")[0]
    return qwen_patches([small])


def qwen_exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """The model given a smaller picture."""
    return model.model.get_image_features(**qwen_smaller(letter, rows, columns), return_dict=True).pooler_output[0]


def qwen_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    image = qwen_picture(letter)
    small = interpolate(image[None], size=(rows * 28, columns * 28), mode="area")
    pixels = qwen_patches([enlarged(small, *image.shape[1:])[0]])
    return model.model.get_image_features(**pixels, return_dict=True).pooler_output[0]


QWEN_WORDS = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<|image_pad|>": 5,
    "<|video_pad|>": 6,
    "<|vision_start|>": 7,
    "<|vision_end|>": 8,
    "<|im_start|>": 9,
    "<|im_end|>": 10,
}

QWEN_CHAT = (
    "{% for turn in messages %}<|im_start|> {{ turn.role }} {% for part in turn.content %}"
    "{% if part.type == 'text' %}{{ part.text }} {% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>"
    "{% endif %}{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def qwen_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    sizes: Any = {
        "patch_size": config.vision_config.patch_size,
        "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 40},
    }
    images: Any = (Qwen2VLImageProcessor if backend == "torchvision" else Qwen2VLImageProcessorPil)(**sizes)
    class_name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}.get(config.model_type, "Qwen3VL")
    clips: Any = Qwen3VLVideoProcessor if class_name == "Qwen3VL" else Qwen2VLVideoProcessor
    make: Any = getattr(transformers, f"{class_name}Processor")
    return make(images, tokenizer, clips(**sizes), chat_template=QWEN_CHAT)


QWEN_RESIZED = {"exact": qwen_exact, "enlarge": qwen_enlarged}


def qwen_words(layout: Layout) -> list[int]:
    """A picture with the tokens before and after it that some of these models count positions by."""
    return [7, *[5] * layout.total, 8]


def qwen_row(name: str, make: Callable[[], nn.Module], windows: bool, **facts: Any) -> Row:
    return Row(
        name,
        make,
        image_token=5,
        pictures=QWEN_PICTURES,
        pixels=qwen_pixels,
        attention=attention_of_windows if windows else attention_of_patches,
        keys=keys_of_windows if windows else keys_of_patches,
        resized=QWEN_RESIZED,
        smaller=qwen_smaller,
        **{"token_types": True, "words": QWEN_WORDS, "processor": qwen_processor} | facts,
    )


def omni_tokens(ending: str) -> dict[str, int]:
    """Special tokens of an Omni thinker, whose configurations call them `..._token_index` or `..._token_id`."""
    ids = {f"{name}_token_{ending}": id for name, id in (("image", 5), ("video", 6), ("audio", 11))}
    return ids | {"vision_start_token_id": 7, "vision_end_token_id": 8, "audio_start_token_id": 12}


OMNI_WORDS = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<|image_pad|>": 5,
    "<|video_pad|>": 6,
    "<|vision_start|>": 7,
    "<|vision_end|>": 8,
    "<|im_start|>": 9,
    "<|im_end|>": 10,
    "<|audio_pad|>": 11,
    "<|audio_start|>": 12,
    "<|audio_end|>": 13,
}

OMNI_CHAT = QWEN_CHAT.replace(
    "{% else %}", "{% elif part.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>{% else %}"
)


def omni_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    sizes: Any = {
        "patch_size": config.vision_config.patch_size,
        "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 40},
    }
    images: Any = (Qwen2VLImageProcessor if backend == "torchvision" else Qwen2VLImageProcessorPil)(**sizes)
    names = ("image_token", "video_token", "audio_token", "vision_bos_token", "vision_eos_token", "audio_bos_token")
    words = ("image_pad", "video_pad", "audio_pad", "vision_start", "vision_end", "audio_start", "audio_end")
    named = {name: f"<|{word}|>" for name, word in zip((*names, "audio_eos_token"), words, strict=True)}
    tokenizer._set_model_specific_special_tokens(named)
    class_name = "Qwen2_5Omni" if config.model_type.startswith("qwen2") else "Qwen3OmniMoe"
    make: Any = getattr(transformers, f"{class_name}Processor")
    sounds = WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins, chunk_length=2)
    return make(images, Qwen2VLVideoProcessor(**sizes), sounds, tokenizer, chat_template=OMNI_CHAT)


OMNI_AUDIO: dict[str, Any] = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "max_source_positions": 150,
    "output_dim": 64,
}
"""Sizes of a tiny encoder of audio."""


def omni_row(name: str, make: Callable[[], nn.Module], windows: bool) -> Row:
    facts: dict[str, Any] = {"token_types": False, "written": qwen_words, "logits_to_keep": False}
    facts |= {"unanswerable": (6, 7, 8, 11, 12), "words": OMNI_WORDS, "processor": omni_processor}
    return qwen_row(name, make, windows, made_up_devices=False, **facts)


AUDIO_TOKEN = 11


def with_audio(row: Row, model: Any, prompt: str, first: str) -> dict[str, Tensor]:
    """One prompt with some audio before or after everything else, as the processor of an Omni model gives it."""
    inputs, frames = row.inputs(prompt), 119
    features = picture("S", 16, frames, 14)[..., 0].flip(0)[None]
    mask = torch.ones(1, frames, dtype=torch.int64)
    with torch.no_grad():
        heard = model.model.get_audio_features(features, feature_attention_mask=mask, return_dict=True)
    sound = torch.tensor([[12, *[AUDIO_TOKEN] * heard.last_hidden_state.shape[0], 13]])
    ids = inputs["input_ids"]
    ids = torch.cat([sound, ids] if first == "audio" else [ids, sound, ids[:, -2:]], dim=1)
    audio = {"input_features": features, "feature_attention_mask": mask}
    return inputs | audio | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def whole_omni(thinker: Any) -> Any:
    """The model that has this thinker inside, without the part that speaks."""
    import transformers

    name = "Qwen2_5Omni" if thinker.config.model_type.startswith("qwen2") else "Qwen3OmniMoe"
    config = getattr(transformers, f"{name}Config")(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    whole.thinker.load_state_dict(thinker.state_dict())
    whole.thinker.generation_config = thinker.generation_config
    return whole
