"""A tiny LLaVA-NeXT with random weights in vLLM: base, tiles, padding that is cut away, and newlines."""

from typing import Any

import numpy as np
import pytest
import torch
from engines import Question, ask_vllm, compared, engine
from PIL import Image
from vllm import LLM

SPECS = (
    *("dense", "pool2d:0.25:positions=pack", "stride:0.5:positions=pack", "pool2d:20:positions=pack@features"),
    "pool2d:0.5:positions=pack+pool2d:12:positions=pack",
)
SIZES = ((60, 90), (30, 110), (165, 30), (112, 112))
"""Heights and widths: with padding above, beside, and without any."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, LLM]:
    from directories import make_processor
    from rows import ROWS
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration

    (row,) = (row for row in ROWS if row.name == "llava_next")
    config = row.model().config
    # The attention of vLLM on a CPU takes no smaller heads.
    config.text_config.head_dim = 64
    for part in (config.text_config, config.vision_config):
        part.initializer_range = 0.1
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.image_newline, std=0.5)
    path = tmp_path_factory.mktemp("llava_next")
    model.save_pretrained(path)
    make_processor(row, model.config).save_pretrained(path)
    # Resized as vLLM does it: the same image differs a little by the library that resizes it.
    processor = AutoProcessor.from_pretrained(path)
    return model, processor, engine(path, max_model_len=512, limit_mm_per_prompt={"image": 2})


def question(number: int, images: int = 1) -> Question:
    shown = []
    for each in range(number, number + images):
        height, width = SIZES[each % len(SIZES)]
        pixels = np.random.default_rng(each).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        shown.append(Image.fromarray(pixels).resize((width, height)))
    return Question(f"user : word{40 + number} {'<image> ' * images}what colour is it ? assistant :", tuple(shown))


def test_answers_are_those_of_transformers(served: tuple[Any, Any, LLM], measured: dict[str, list[Any]]) -> None:
    model, processor, llm = served
    questions = [question(number) for number in range(6)] + [question(6, images=2)]
    rows = compared(llm, model, processor, questions, SPECS)
    measured["equality"] = [*measured.get("equality", []), *({"model": "LLaVA-NeXT, tiny", **row} for row in rows)]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("cluster:8", "which rows of it keep their newline; use a grid"),
        ("pool2d:0.5", "write pool2d:0.5:positions=pack"),
    ],
)
def test_a_spec_whose_newlines_hang_on_the_content_is_refused(
    served: tuple[Any, Any, LLM], spec: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        ask_vllm(served[2], [question(1)], [spec])
    assert ask_vllm(served[2], [question(1)], ["dense"])[0].tokens
