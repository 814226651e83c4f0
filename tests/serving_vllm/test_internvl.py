"""A tiny InternVL with random weights in vLLM: tiles with marks around them, and clips in frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Clip, Question, ask_vllm, compared, engine
from PIL import Image
from vllm import LLM

SPECS = (
    *("dense", "cluster:8", "cluster:4:per=tile", "cls:6", "cls:0.5@features", "visionzip:8", "divprune:0.3"),
    *("pool:0.25:positions=pack", "cls:0.5:per=tile@features+cluster:3:per=tile"),
)
CLIP_SPECS = ("dense", "cluster:4", "cls:3", "cls:0.5@features", "pool:0.5:positions=pack")
SIZES = ((168, 168), (84, 168), (84, 84), (252, 84))
"""Heights and widths: four tiles and the whole, two and the whole, one, three and the whole."""


def saved(path: Path) -> tuple[Any, Any]:
    """Save a tiny model with random weights and its processor, and return both."""
    from directories import make_processor
    from rows import ROWS
    from transformers import AutoProcessor, InternVLConfig, InternVLForConditionalGeneration

    (row,) = (row for row in ROWS if row.name == "internvl")
    config = row.model().config.to_dict()
    # The attention of vLLM on a CPU takes no smaller heads.
    config["text_config"] |= {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    for part in ("text_config", "vision_config"):
        config[part]["initializer_range"] = 0.1
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(InternVLConfig(**config)).eval()
    embeddings: Any = model.model.vision_tower.embeddings
    for weight in (embeddings.cls_token, embeddings.position_embeddings):
        torch.nn.init.normal_(weight, std=0.5)  # they start at zero
    model.save_pretrained(path)
    make_processor(row, model.config).save_pretrained(path)
    # Resized as vLLM does it: the same image differs a little by the library that resizes it.
    return model, AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, LLM]:
    path = tmp_path_factory.mktemp("internvl")
    model, processor = saved(path)
    llm = engine(path, max_model_len=512, limit_mm_per_prompt={"image": 2, "video": 1})
    return model, processor, llm


def picture(number: int) -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def question(number: int, images: int = 1, frames: int = 0) -> Question:
    shown = ["<IMG_CONTEXT>"] * images + ["<video>"] * bool(frames)
    prompt = f"user : word{40 + number} {' '.join(shown)} what colour is it ? assistant :"
    clips = []
    if frames:
        pixels = np.random.default_rng(50 + number).integers(0, 255, (frames, 6, 6, 3), dtype=np.uint8)
        clips.append(Clip(np.stack([np.asarray(Image.fromarray(frame).resize((84, 84))) for frame in pixels])))
    return Question(prompt, tuple(picture(number + each) for each in range(images)), tuple(clips))


def test_answers_are_those_of_transformers(served: tuple[Any, Any, LLM], measured: dict[str, list[Any]]) -> None:
    model, processor, llm = served
    questions = [question(number) for number in range(4)] + [question(5, images=2)]
    rows = compared(llm, model, processor, questions, SPECS)
    measured["equality"] = [*measured.get("equality", []), *({"model": "InternVL, tiny", **row} for row in rows)]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


def test_each_frame_of_a_clip_is_an_image(served: tuple[Any, Any, LLM], measured: dict[str, list[Any]]) -> None:
    model, processor, llm = served
    questions = [question(0, images=0, frames=3), question(1, images=0, frames=2), question(2, images=1, frames=2)]
    rows = compared(llm, model, processor, questions, CLIP_SPECS)
    named = ({"model": "InternVL, tiny, clips", **row} for row in rows)
    measured["equality"] = [*measured.get("equality", []), *named]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


@pytest.mark.parametrize(
    ("asked", "spec", "reason"),
    [
        (question(2), "cluster:900", "keep at most"),
        (question(0), "pool2d:0.5", "write pool2d:0.5:positions=pack"),
        (question(0, images=0, frames=3), "evs:0.5:positions=pack", "evs works on the frames of a clip"),
        (question(0), "cdpruner:6", "reads the question"),
    ],
)
def test_a_bad_spec_is_refused(served: tuple[Any, Any, LLM], asked: Question, spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask_vllm(served[2], [asked], [spec])
    assert ask_vllm(served[2], [asked], ["cluster:3"])[0].tokens
