"""Tiny Qwen-VL models with random weights in vLLM: answers and positions are those of transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Clip, Question, ask_vllm, compared, difference, engine, forget
from PIL import Image
from vllm import LLM

SPECS = (
    "dense",
    "cluster:12",
    "pool:0.25:positions=pack",
    "stride:6",
    "divprune:0.3",
    "cluster:0.5+pool:4:positions=pack",
)
CLIP_SPECS = (
    *("dense", "cluster:12", "cluster:3:per=frame", "pool:0.25:positions=pack", "stride:6", "divprune:0.3"),
    *("evs:0.5:positions=pack", "cluster:0.5+pool:4:positions=pack", "cluster:3:per=frame+cluster:0.7"),
)
CLIPS = ((4, 84, 112), (6, 140, 112), (4, 140, 84))
"""Frames, height and width; what the encoder takes as one frame is two of these."""
SIZES = ((112, 168), (224, 84), (140, 140))
TEXT = {
    **{"vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 64},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
}
TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "initializer_range": 0.1}


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {**VISION, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=TEXT, **TOKENS))


def qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {**VISION, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "window_size": 56}
    vision["fullatt_block_indexes"] = [1]
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT, **TOKENS))


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {**VISION, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, "rope_parameters": {**TEXT["rope_parameters"], "mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text, **TOKENS))


TITLES = {qwen2_vl: "Qwen2-VL, tiny", qwen2_5_vl: "Qwen2.5-VL, tiny", qwen3_vl: "Qwen3-VL, tiny"}


@dataclass(frozen=True)
class Served:
    """A tiny model in both programs."""

    name: str
    model: Any
    processor: Any
    llm: LLM


def saved(make: Callable[[], Any], path: Path) -> tuple[Any, Any]:
    """Save a tiny model with random weights and its processor, and return both."""
    from directories import make_processor
    from rows import ROWS

    (row,) = (row for row in ROWS if row.name == make.__name__)
    torch.manual_seed(0)
    model = make().eval()
    processor = make_processor(row, model.config)
    # vLLM takes the mean and the deviation of images for clips, too, which released models have alike.
    clips, images = processor.video_processor, processor.image_processor
    clips.image_mean, clips.image_std = images.image_mean, images.image_std
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return model, processor


@pytest.fixture(scope="module", params=TITLES, ids=lambda make: make.__name__)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp(request.param.__name__)
    model, processor = saved(request.param, path)
    return Served(TITLES[request.param], model, processor, engine(path, limit_mm_per_prompt={"image": 2, "video": 1}))


def picture(number: int) -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def question(number: int, images: int = 1) -> Question:
    shown = " ".join(["<|vision_start|> <|image_pad|> <|vision_end|>"] * images)
    prompt = f"user : word{40 + number} {shown} what colour is it ? assistant :"
    return Question(prompt, tuple(picture(number + each) for each in range(images)))


def clip(number: int) -> Clip:
    frames, height, width = CLIPS[number % len(CLIPS)]
    pixels = np.random.default_rng(100 + number).integers(0, 255, (frames, 6, 6, 3), dtype=np.uint8)
    shown = [Image.fromarray(frame).resize((width, height)) for frame in pixels]
    return Clip(np.stack([np.asarray(frame) for frame in shown]), fps=4.0 * (1 + number % 2))


def question_about_a_clip(number: int, images: int = 0) -> Question:
    shown = ["<|vision_start|> <|image_pad|> <|vision_end|>"] * images
    shown.insert(number % (images + 1), "<|vision_start|> <|video_pad|> <|vision_end|>")
    prompt = f"user : word{40 + number} {' '.join(shown)} what colour is it ? assistant :"
    return Question(prompt, tuple(picture(number + each) for each in range(images)), (clip(number),))


def test_answers_about_clips_are_those_of_transformers(served: Served, measured: dict[str, list[Any]]) -> None:
    questions = [question_about_a_clip(number) for number in range(4)]
    questions += [question_about_a_clip(number, images=number - 3) for number in (4, 5)]
    rows = compared(served.llm, served.model, served.processor, questions, CLIP_SPECS)
    name = f"{served.name}, clips"
    measured["equality"] = [*measured.get("equality", []), *({"model": name, **row} for row in rows)]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


def test_a_clip_of_many_frames_has_the_positions_that_vllm_gives_it_whole(served: Served) -> None:
    """Its last frame is later than it has rows and columns; five times 1.4, as the clip's seconds are, is near 7."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 84, 56, 3), dtype=np.uint8)
    asked = replace(question_about_a_clip(0), clips=(Clip(pixels, fps=40 / 7),))
    whole, kept = ask_vllm(served.llm, [asked] * 2, ["dense", "stride:1.0"])
    assert (kept.prompt, kept.tokens) == (whole.prompt, whole.tokens)
    assert difference(kept, whole) < 1e-5


def test_clips_of_one_frame_and_frames_of_which_nothing_is_left(served: Served) -> None:
    """Two frames of a file are one for the encoder; a grid of two tokens leaves other frames empty."""
    short = replace(question_about_a_clip(2), clips=(Clip(clip(2).frames[:2], fps=4.0),))
    for asked, specs in (
        (short, ("cluster:2", "stride:2", "cluster:2:per=frame")),
        (question_about_a_clip(1), ("stride3d:4", "stride3d:4:positions=pack", "frames:0.4:positions=pack")),
    ):
        for row in compared(served.llm, served.model, served.processor, [asked], specs):
            assert (row["single"], row["batch"], row["mixed"]) == (1, 1, 1), row
            assert row["difference"] < 1e-4, row


def test_caches_know_specs_of_clips(served: Served) -> None:
    forget(served.llm)
    asked = question_about_a_clip(1)
    # So many words that the clip's placeholders fill a block together with them.
    asked = replace(asked, prompt=asked.prompt.replace("what", "word60 " * 32 + "what"))
    written = ("cluster:0.6", "cluster:0.6:start=stride", "pool:0.6:positions=pack", "dense")
    first, again, other, whole = (ask_vllm(served.llm, [asked], [spec])[0] for spec in written)
    assert (first.prompt, first.cached) == (other.prompt, 0)
    assert again.cached >= 32
    assert other.cached == whole.cached == 0
    assert difference(first, again) < 1e-5


@pytest.mark.parametrize(
    ("asked", "spec", "reason"),
    [
        (question_about_a_clip(0), "cluster:900", "keep at most"),
        (question_about_a_clip(0), "evs:6:positions=keep", "must know them before the encoder runs"),
        (question(0), "evs:0.5:positions=pack", "evs works on the frames of a clip"),
    ],
)
def test_a_bad_spec_for_a_clip_is_refused(served: Served, asked: Question, spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask_vllm(served.llm, [asked], [spec])
    assert ask_vllm(served.llm, [question_about_a_clip(0)], ["cluster:6"])[0].tokens


def test_answers_are_those_of_transformers(served: Served, measured: dict[str, list[Any]]) -> None:
    questions = [question(number) for number in range(6)] + [question(7, images=2)]
    rows = compared(served.llm, served.model, served.processor, questions, SPECS)
    measured["equality"] = [*measured.get("equality", []), *({"model": served.name, **row} for row in rows)]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("cls:6", "doesn't give"),
        ("cluster:6@features", "doesn't show"),
        ("divprune:6:positions=keep", "must know them before the encoder runs"),
        ("cluster:900", "keep at most"),
    ],
)
def test_a_request_with_a_bad_spec_is_refused(served: Served, spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask_vllm(served.llm, [question(1)], [spec])
    assert ask_vllm(served.llm, [question(1)], ["cluster:6"])[0].tokens
