"""Two ranks with tensor parallelism: each has half of the encoder's heads, and both must choose the same tokens."""

from pathlib import Path
from typing import Any

import torch
from engines import Question, ask_transformers, ask_vllm, difference, engine

import foveate
from foveate.scenes import scene

SPECS = ("dense", "cls:16", "visionzip:64", "cls:0.25@features", "cluster:20")


def two_heads() -> tuple[Any, Any]:
    """Make the embedded model with two heads in each layer and random weights, and its processor."""
    from transformers import LlavaForConditionalGeneration

    model, processor = foveate.reference()
    config = model.config
    for part in (config.text_config, config.vision_config):
        part.num_attention_heads = 2
        part.initializer_range = 0.1
    config.text_config.num_key_value_heads, config.text_config.head_dim = 2, 96
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).float().eval(), processor


def test_two_ranks_answer_as_one_model(tmp_path: Path, measured: dict[str, list[Any]]) -> None:
    model, processor = two_heads()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    llm = engine(tmp_path, tensor_parallel_size=2)
    rows = []
    for spec in SPECS:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a star ?"}]}]
        asked = Question(processor.apply_chat_template(turn, add_generation_prompt=True), (scene(5).image,))
        (answer,) = ask_vllm(llm, [asked], [spec])
        expected = ask_transformers(model, processor, asked, spec)
        assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens), spec
        rows.append({"spec": spec, "prompt": answer.prompt, "difference": difference(answer, expected)})
        assert rows[-1]["difference"] < 1e-4, spec
    measured["ranks"] = rows
