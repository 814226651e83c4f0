"""A LLaVA whose encoder the plugin can't serve: it is served whole, by vLLM's own processor, and specs are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Question, ask_transformers, ask_vllm, difference, engine
from PIL import Image
from vllm import LLM


@pytest.fixture(scope="module")
def pixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A tiny LLaVA with Pixtral's encoder: its folder, its model and its processor."""
    from directories import make_processor
    from rows import ROWS
    from transformers import LlavaForConditionalGeneration

    (row,) = (row for row in ROWS if row.name == "pixtral")
    config = row.model().config
    # The attention of vLLM on a CPU takes no smaller heads.
    config.text_config.head_dim = 64
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor = make_processor(row, model.config)
    path = tmp_path_factory.mktemp("pixtral")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, model, processor


@pytest.fixture(scope="module")
def llm(pixtral: tuple[Path, Any, Any]) -> LLM:
    return engine(pixtral[0], max_model_len=512)


def question(processor: Any, width: int, height: int) -> Question:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Question(f"user : {processor.image_token} what colour is it ? assistant :", (Image.fromarray(pixels),))


def test_a_llava_with_pixtral_is_served_whole(llm: LLM, pixtral: tuple[Path, Any, Any]) -> None:
    _, model, processor = pixtral
    for width, height in ((56, 84), (84, 42)):
        asked = question(processor, width, height)
        (answer,) = ask_vllm(llm, [asked], [None])
        expected = ask_transformers(model, processor, asked, "dense")
        assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
        assert difference(answer, expected) < 1e-4


def test_a_spec_for_it_is_refused(llm: LLM, pixtral: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, processor = pixtral
    with pytest.raises(ValueError, match="LLaVA with a pixtral encoder is served whole by vLLM"):
        ask_vllm(llm, [question(processor, 56, 84)], ["cluster:4"])
    assert ask_vllm(llm, [question(processor, 56, 84)], [None])[0].tokens
    monkeypatch.setenv("FOVEATE_SPEC", "cluster:4")
    with pytest.raises(RuntimeError, match="LLaVA with a pixtral encoder is served whole by vLLM"):
        engine(path, max_model_len=512)
