"""The embedded model is a plain LLaVA directory that loads, answers and speaks the chat template."""

import json

import pytest
import torch

import foveate.embedded as package
from foveate.embedded import PATH, reference
from foveate.scenes import scene


@pytest.fixture(scope="module")
def loaded():
    return reference()


def _ask(loaded, image, question):
    model, processor = loaded
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(images=[image], text=prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return inputs, processor.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True), out


def test_the_directory_is_small_and_holds_no_pickle():
    files = [p for p in PATH.iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 24e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".jinja", ".md"}
    assert not [p for p in files if p.name == "training.safetensors"]


def test_the_shape_is_what_the_docs_say(loaded):
    model, processor = loaded
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"
    assert len(model.model.language_model.layers) == 12
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert next(model.parameters()).dtype == torch.float32
    assert not model.training
    assert processor.tokenizer.padding_side == "left"
    assert "auto_map" not in json.loads((PATH / "config.json").read_text())


def test_it_sees_576_tokens_and_stops(loaded):
    one = scene(3)
    inputs, answer, out = _ask(loaded, one.image, one.questions[0].text)
    assert int((inputs.input_ids == 4).sum()) == 576
    assert answer
    assert out[0, -1] == loaded[0].generation_config.eos_token_id


def test_any_picture_and_any_question_go_through(loaded):
    image = scene(4).image.resize((333, 101)).convert("L")
    inputs, _, _ = _ask(loaded, image, "Wäs ist “das”, PLEASE? 3.5% of 1234 \u4e16")
    assert int((inputs.input_ids == 4).sum()) == 576


def test_it_looks_at_the_picture(loaded):
    model, processor = loaded
    one, other = scene(0, kind="shapes"), scene(1, kind="words")
    text = "USER: <image>\nwhere is the circle ? ASSISTANT:"
    inputs = [processor(images=[s.image], text=text, return_tensors="pt") for s in (one, other)]
    logits = [model(**i).logits[0, -1].detach() for i in inputs]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_numbers_are_read_digit_by_digit(loaded):
    _, processor = loaded
    ids = processor.tokenizer("47")["input_ids"]
    assert len(ids) == 2
    assert processor.tokenizer.decode(ids) == "47"


def test_missing_weights_are_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "PATH", tmp_path)
    with pytest.raises(FileNotFoundError, match="install foveate again"):
        reference()
