"""Omni models: a prompt with images and audio loses visual tokens alone, also inside the whole model that speaks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from directories import make_processor
from rows import ROWS, Row
from rows.qwen import AUDIO_TOKEN, whole_omni, with_audio
from test_contract import generate, logits
from torch import Tensor, nn

import foveate
from foveate.engine import apply, compress
from foveate.families import family_of
from foveate.loading import skeleton

PROMPT = "t6 A t5"


@pytest.fixture(params=[row for row in ROWS if AUDIO_TOKEN in row.unanswerable], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.mark.parametrize("first", ["image", "audio"])
@pytest.mark.parametrize("spec", ["random:1.0", "cls:1.0:positions=keep@features", "pool:1.0@1"])
def test_keeping_everything_is_the_untouched_model(row: Row, any_model: Any, spec: str, first: str) -> None:
    inputs = with_audio(row, any_model, PROMPT, first)
    dense, ids = logits(any_model, inputs), generate(any_model, inputs)
    with apply(any_model, spec):
        assert torch.equal(logits(any_model, inputs), dense)
        assert torch.equal(generate(any_model, inputs), ids)


@pytest.mark.parametrize("first", ["image", "audio"])
@torch.no_grad()
def test_dropping_is_masking_and_audio_stays(row: Row, any_model: Any, first: str) -> None:
    inputs = with_audio(row, any_model, PROMPT, first)
    audio = inputs["input_ids"] == AUDIO_TOKEN
    short = compress(any_model, inputs, "random:6:positions=keep")
    assert int((short["input_ids"] == AUDIO_TOKEN).sum()) == int(audio.sum()) > 3
    keep = ~row.is_image(inputs["input_ids"])
    keep[0, row.is_image(inputs["input_ids"])[0].nonzero()[short.images[0].slot, 0]] = True
    positions, _ = any_model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
        audio_seqlens=inputs["feature_attention_mask"].sum(1),
    )
    assert torch.equal(short["position_ids"].flatten(), positions[..., keep].long().flatten())
    oracle = any_model(**inputs | {"attention_mask": keep.long(), "position_ids": positions}).logits
    with apply(any_model, "random:6:positions=keep"):
        got = any_model(**inputs).logits
    torch.testing.assert_close(got[keep], oracle[keep], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(any_model(**short).logits[0], oracle[keep], atol=1e-5, rtol=1e-5)


def test_what_is_heard_matters(row: Row, model: Any) -> None:
    inputs = with_audio(row, model, PROMPT, "audio")
    with apply(model, "random:6"):
        heard = logits(model, inputs)
        other = logits(model, inputs | {"input_features": inputs["input_features"].flip(2)})
    assert (heard - other)[:, -1].abs().max() > 1e-3


def test_audio_without_an_image_passes(row: Row, model: Any) -> None:
    inputs = with_audio(row, model, "t6 t5", "audio")
    dense, ids = logits(model, inputs), generate(model, inputs)
    with apply(model, "random:6"):
        assert torch.equal(logits(model, inputs), dense)
        assert torch.equal(generate(model, inputs), ids)


def test_a_padded_batch_with_audio(row: Row, model: Any) -> None:
    prompts = ("t6 A t5", "t2 B t9")
    both = [with_audio(row, model, prompt, "audio") for prompt in prompts]
    longest = max(each["input_ids"].shape[1] for each in both)
    batch: dict[str, Tensor] = {}
    for name in both[0]:
        values = [each[name] for each in both]
        if name in ("input_ids", "attention_mask"):
            values = [nn.functional.pad(value, (longest - value.shape[1], 0)) for value in values]
        batch[name] = torch.cat(values)
    with apply(model, "random:6"):
        together = generate(model, batch)
        for number, each in enumerate(both):
            assert torch.equal(together[number], generate(model, each)[0])


class Omni(nn.Module):
    """A whole model, with its thinker and a part that speaks."""

    def __init__(self, thinker: nn.Module) -> None:
        super().__init__()
        self.thinker, self.talker = thinker, nn.Linear(64, 8)

    def generate(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        out: Any = self.thinker.generate(  # pyright: ignore
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        steps = [torch.cat([step[0], step[-1]], dim=2) for step in out.hidden_states]
        return out.sequences, torch.cat(steps, dim=1)


def test_hidden_states_for_a_talker_have_the_full_length(row: Row, model: Any) -> None:
    inputs, whole = with_audio(row, model, PROMPT, "image"), Omni(model)
    assert family_of(whole).core is family_of(model).core
    sequences, hidden = whole.generate(**inputs)
    with apply(whole, "random:1.0"):
        kept, same = whole.generate(**inputs)
    assert torch.equal(kept, sequences)
    torch.testing.assert_close(same, hidden)
    with apply(whole, "random:6") as run:
        short, fewer = whole.generate(**inputs)
    assert short.shape == sequences.shape
    assert fewer.shape == hidden.shape
    assert run.report().after == 6


def test_steps_act_in_the_thinker_of_the_whole_model(row: Row, model: Any) -> None:
    inputs, whole = with_audio(row, model, PROMPT, "image"), whole_omni(model)
    assert type(family_of(whole)) is type(family_of(model))
    dense = generate(whole.thinker, inputs)
    assert torch.equal(dense, generate(model, inputs))
    with apply(whole, "random:1.0"):
        assert torch.equal(generate(whole.thinker, inputs), dense)
    with apply(whole, "random:6") as run:
        short = generate(whole.thinker, inputs)
    assert run.report().after == 6
    with apply(model, "random:6"):
        assert torch.equal(generate(model, inputs), short)
    assert torch.equal(generate(model, compress(whole, inputs, "random:6")), short)


def test_the_thinker_is_loaded_from_the_files_of_the_whole_model(row: Row, model: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    whole = whole_omni(model)
    whole.save_pretrained(tmp_path)
    make_processor(row, model.config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] in family_of(model).inside
    loaded, processor = foveate.load(tmp_path)
    assert type(loaded) is type(model)
    assert type(processor).__name__.endswith("Processor")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert type(family_of(skeleton(tmp_path))) is type(family_of(model))
    for config in (tmp_path, whole.config):
        assert foveate.cost(config, images=[(168, 112)]).visual_tokens == 24
