"""Two ranks with tensor parallelism: each has half of the encoder's heads, and both must choose the same tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_internvl
import test_qwen
import torch
from engines import Question, ask_transformers, ask_vllm, difference, engine

import foveate
from foveate.scenes import scene

LLAVA_SPECS = ("dense", "cls:16", "visionzip:64", "cls:0.25@features", "cluster:20")


def llava(path: Path) -> tuple[Any, Any, Question]:
    """Save the embedded model with two heads in each layer and random weights, and return it and its processor."""
    from transformers import LlavaForConditionalGeneration

    model, processor = foveate.reference()
    config: Any = model.config
    for part in (config.text_config, config.vision_config):
        part.num_attention_heads = 2
        part.initializer_range = 0.1
    config.text_config.num_key_value_heads, config.text_config.head_dim = 2, 96
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float().eval()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a star ?"}]}]
    asked = Question(processor.apply_chat_template(turn, add_generation_prompt=True), (scene(5).image,))
    return model, processor, asked


def qwen3_vl(path: Path) -> tuple[Any, Any, Question]:
    """Save a tiny Qwen3-VL, asked about a clip: the times between frames are embedded by all ranks together."""
    model, processor = test_qwen.saved(test_qwen.qwen3_vl, path)
    return model, processor, test_qwen.question_about_a_clip(0)


def internvl(path: Path) -> tuple[Any, Any, Question]:
    """Save a tiny InternVL, whose encoder has all heads on every rank."""
    model, processor = test_internvl.saved(path)
    return model, processor, test_internvl.question(1)


@pytest.mark.parametrize(
    ("name", "make", "specs"),
    [
        ("LLaVA", llava, LLAVA_SPECS),
        ("Qwen3-VL", qwen3_vl, ("dense", "cluster:0.5", "stride:6")),
        ("InternVL", internvl, ("dense", "cls:6", "cluster:3:per=tile")),
    ],
)
def test_two_ranks_answer_as_one_model(
    name: str,
    make: Callable[[Path], tuple[Any, Any, Question]],
    specs: tuple[str, ...],
    tmp_path: Path,
    measured: dict[str, list[Any]],
) -> None:
    model, processor, asked = make(tmp_path)
    llm = engine(
        tmp_path,
        tensor_parallel_size=2,
        max_model_len=640 if name == "LLaVA" else 512,
        limit_mm_per_prompt={"image": 1, "video": 1},
    )
    rows = []
    for spec in specs:
        (answer,) = ask_vllm(llm, [asked], [spec])
        expected = ask_transformers(model, processor, asked, spec)
        assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens), spec
        rows.append({"model": name, "spec": spec, "prompt": answer.prompt, "difference": difference(answer, expected)})
        assert rows[-1]["difference"] < 1e-4, spec
    measured["ranks"] = [*measured.get("ranks", []), *rows]


def test_every_rank_sees_the_heads_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that looked at their own heads would choose different tokens."""
    from foveate.vllm_plugin import llava as plugin
    from foveate.vllm_plugin import recording

    torch.manual_seed(0)
    width, heads = 8, 4
    whole = {name: torch.randn(2, 30, heads * width) for name in ("queries", "keys", "values")}
    half = heads * width // 2
    # What `qkv_proj` gives on each of two ranks: half of the heads of each.
    outputs = [
        torch.cat([states[..., rank * half : (rank + 1) * half] for states in whole.values()], dim=-1)
        for rank in range(2)
    ]
    monkeypatch.setattr(recording, "get_tensor_model_parallel_world_size", lambda: 1)
    alone = [plugin.queries_and_keys((output, None)) for output in outputs]
    assert not chosen(alone[0], width).equal(chosen(alone[1], width))

    def gathered(states: torch.Tensor, dim: int) -> torch.Tensor:
        """Stands for the collective: finds whose states these are, and puts those of the other rank beside them."""
        assert states.is_contiguous()
        (part,) = (n for output in outputs for n, each in enumerate(output.chunk(3, dim=-1)) if each.equal(states))
        return torch.cat([output.chunk(3, dim=-1)[part] for output in outputs], dim=dim)

    monkeypatch.setattr(recording, "get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr(recording, "tensor_model_parallel_all_gather", gathered)
    for output in outputs:
        found = plugin.queries_and_keys((output, None))
        assert found["queries"].equal(whole["queries"])
        assert found["keys"].equal(whole["keys"])
        assert chosen(found, width).equal(chosen(whole, width))


def chosen(states: dict[str, torch.Tensor], width: int) -> torch.Tensor:
    """The ten tokens that [CLS] attends to most, averaged over heads."""
    queries, keys = (states[name].unflatten(-1, (-1, width)) for name in ("queries", "keys"))
    scores = torch.einsum("bhd,bthd->bht", queries[:, 0], keys) * width**-0.5
    return scores.softmax(-1).mean(1)[:, 1:].topk(10).indices.sort().values
