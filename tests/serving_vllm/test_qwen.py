"""Tiny Qwen-VL models with random weights in vLLM: answers and positions are those of transformers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from engines import Question, ask_vllm, compared, engine
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


@pytest.fixture(scope="module", params=TITLES, ids=lambda make: make.__name__)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    from directories import make_processor
    from rows import ROWS

    (row,) = (row for row in ROWS if row.name == request.param.__name__)
    torch.manual_seed(0)
    model = request.param().eval()
    processor = make_processor(row, model.config)
    path = tmp_path_factory.mktemp(row.name)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Served(TITLES[request.param], model, processor, engine(path, limit_mm_per_prompt={"image": 2, "video": 1}))


def picture(number: int) -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def question(number: int, images: int = 1) -> Question:
    shown = " ".join(["<|vision_start|> <|image_pad|> <|vision_end|>"] * images)
    prompt = f"user : word{40 + number} {shown} what colour is it ? assistant :"
    return Question(prompt, tuple(picture(number + each) for each in range(images)))


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
