"""Model folders that are damaged, incomplete or put together from two models are refused by name."""

import copy
import json
import shutil
import threading

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.embedded import PATH
from foveate.errors import FoveateError
from foveate.families.prompt_check import layout_of_prompt
from foveate.loading import family_without_weights, load, load_model, load_processor, skeleton
from foveate.prompts import question_inputs


@pytest.fixture(scope="module")
def weights():
    return load_file(PATH / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PATH, tmp_path / "model")


def edited(file, **values):
    """Change fields of a JSON file; `text_config__vocab_size` is a field inside another, and ... removes one."""
    data = json.loads(file.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        place = data
        for part in parts:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(data))


def refusal(call, folder) -> str:
    with pytest.raises(FoveateError) as caught:
        call(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def layer_of(weights, number=11):
    return [name for name in weights if f"language_model.layers.{number}." in name or f"model.layers.{number}." in name]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("text_config__num_hidden_layers", 0, "num_hidden_layers of llama is 0"),
        ("text_config__num_hidden_layers", -1, "num_hidden_layers of llama is -1"),
        ("text_config__num_hidden_layers", 1_000_000, "from 1 to 1000"),
        ("text_config__num_hidden_layers", "12", "expected int, got str"),
        ("text_config__num_hidden_layers", None, "expected int, got NoneType"),
        ("text_config__num_attention_heads", 0, "cannot be loaded"),
        ("text_config__num_attention_heads", -3, "num_attention_heads of llama is -3"),
        ("text_config__num_attention_heads", 5, "not a multiple"),
        ("text_config__num_key_value_heads", 0, "num_key_value_heads of llama is 0"),
        ("text_config__head_dim", 0, "head_dim of llama is 0"),
        ("text_config__hidden_size", 0, "hidden_size of llama is 0"),
        ("text_config__vocab_size", 0, "vocab_size of llama is 0"),
        ("text_config__rms_norm_eps", float("nan"), "rms_norm_eps of llama is nan"),
        ("text_config__rms_norm_eps", -1.0, "rms_norm_eps of llama is -1.0"),
        ("text_config__rope_parameters", {"rope_theta": 0, "rope_type": "default"}, "rope_theta of llama is 0"),
        ("text_config", ..., "has no text_config"),
        ("text_config", None, "has no text_config"),
        ("vision_config", ..., "has no vision_config"),
        ("vision_config__patch_size", 0, "patch_size of clip_vision_model is 0"),
        ("vision_config__patch_size", -8, "patch_size of clip_vision_model is -8"),
        ("vision_config__num_hidden_layers", 0, "num_hidden_layers of clip_vision_model is 0"),
        ("vision_feature_layer", -99, "vision_feature_layer of llava is -99, and its encoder has 6 layers"),
        ("vision_feature_layer", 7, "vision_feature_layer of llava is 7"),
        ("vision_feature_layer", 0, "vision_feature_layer of llava is 0"),
        ("vision_feature_layer", [-2, -99], "vision_feature_layer of llava is [-2, -99]"),
        ("vision_feature_layer", [], "vision_feature_layer of llava is []"),
        ("vision_feature_select_strategy", "nosuch", "vision_feature_select_strategy"),
        ("image_token_index", "4", "image_token_index"),
        ("model_type", ["llava"], "are not supported"),
        ("model_type", ..., "are not supported"),
    ],
)
def test_configurations(folder, field, value, text):
    edited(folder / "config.json", **{field: value})
    for call in (skeleton, load_processor, load_model):
        assert text in refusal(call, folder)


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("internvl_chat", {"auto_map": {"AutoModel": "x.Y"}}, "for transformers, such as OpenGVLab/InternVL3_5-8B-HF"),
        ("nosuch", {"auto_map": {"AutoModel": "x.Y"}}, "is not in transformers, and foveate never runs such code"),
        ("nosuch", {}, "doesn't know them. A later version may"),
    ],
)
def test_types_that_transformers_does_not_know(tmp_path, folder, kind, fields, text):
    named = folder.rename(tmp_path / "InternVL3_5-8B")
    edited(named / "config.json", model_type=kind, **fields)
    for call in (skeleton, load_processor, load_model):
        assert text in refusal(call, named)


def test_a_name_without_its_organisation():
    assert "as organisation/name, such as Qwen/Qwen3-VL-8B-Instruct" in refusal(skeleton, "qwen3-vl-8b")
    assert refusal(skeleton, "nosuch").endswith("as organisation/name")


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "[" * 100_000, '{"model_type": ' + "9" * 5000 + "}"], ids=len)
def test_configurations_that_are_no_object(folder, text):
    (folder / "config.json").write_text(text)
    assert "config" in refusal(skeleton, folder) or "not supported" in refusal(skeleton, folder)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("text_config__num_hidden_layers", 6, "has 54 weights that its configuration has no place for"),
        (
            "text_config__num_hidden_layers",
            13,
            "asks for 13 layers in model.language_model.layers, and its files hold stacks of 6, 12",
        ),
        ("text_config__num_hidden_layers", 500, "and its files hold 8,262,720"),
        ("vision_config__num_hidden_layers", 3, "asks for 3 layers in model.vision_tower"),
        ("text_config__intermediate_size", 100, "has 36 weights of another shape"),
        ("text_config__vocab_size", 301, "(300, 192) in the files and (301, 192) by the configuration"),
        ("text_config__hidden_size", 4095, "and its files hold 8,262,720"),
        ("vision_config__image_size", 336, "weight of another shape"),
        ("vision_config__patch_size", 16, "weights of another shape"),
        ("text_config__attention_bias", True, "lacks 48 weights"),
    ],
)
def test_weights_of_another_configuration(folder, field, value, text):
    edited(folder / "config.json", **{field: value})
    assert text in refusal(load_model, folder)


def changed(folder, weights):
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_or_left_over(folder, weights):
    names = layer_of(weights)
    assert len(names) == 9
    changed(folder, {name: value for name, value in weights.items() if name not in names})
    assert "and its files hold stacks of 6, 11" in refusal(load_model, folder)
    changed(folder, {**weights, "nosuch.weight": torch.zeros(3)})
    assert "has 1 weight that its configuration has no place for (nosuch.weight)" in refusal(load_model, folder)
    changed(folder, {**weights, names[0].replace(".weight", ".weight_scale"): torch.ones(3)})
    assert "weight_scale" in refusal(load_model, folder)


def test_what_older_versions_saved_with_the_weights_is_no_weight(folder, weights):
    more = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(32),
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None],
        "language_model.lm_head.weight": weights[next(name for name in weights if "embed_tokens" in name)].clone(),
    }
    changed(folder, {**weights, **more})
    assert load_model(folder).config.model_type == "llava"


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("every", [True, False])
def test_quantised_weights_without_a_quantisation_config(folder, weights, dtype, every):
    names = list(weights) if every else layer_of(weights)[:1]
    changed(folder, {name: value.to(dtype) if name in names else value for name, value in weights.items()})
    text = refusal(load_model, folder)
    assert f"stores quantised weights ({len(names)} of type" in text
    assert "quantization_config" in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weights_in_another_float(folder, weights, dtype):
    changed(folder, {name: value.to(dtype) for name, value in weights.items()})
    assert load_model(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_of_the_weights_is_none(folder, weights, value):
    name = layer_of(weights)[2]
    broken = weights[name].clone()
    broken.view(-1)[7] = value
    changed(folder, {**weights, name: broken})
    text = refusal(load_model, folder)
    assert "has NaN or infinite numbers in 1 weight" in text
    assert "layers.11" in text


def test_weights_of_zero(folder, weights):
    changed(folder, {name: torch.zeros_like(value) for name, value in weights.items()})
    assert "are zero" in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no whole safetensors file"),
        (b"\xff" * 1000, "no whole safetensors file"),
        ((PATH / "model.safetensors").read_bytes()[:1_000_000], "no whole safetensors file"),
    ],
    ids=["empty", "pointer", "noise", "cut"],
)
def test_damaged_files_of_weights(folder, data, text):
    (folder / "model.safetensors").write_bytes(data)
    assert text in refusal(load_model, folder)


def sharded(folder, weights, change=None):
    (folder / "model.safetensors").unlink()
    names = list(weights)
    files = {"one.safetensors": names[:60], "two.safetensors": names[60:]}
    for file, own in files.items():
        save_file({name: weights[name] for name in own}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
    changed = index if change is None else change(index)
    (folder / "model.safetensors.index.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))


def test_shards(folder, weights):
    sharded(folder, weights)
    assert load_model(folder).config.model_type == "llava"
    (folder / "two.safetensors").unlink()
    assert "lacks 1 of its 2 files of weights (two.safetensors)" in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda index: "", "is not JSON"),
        (lambda index: [], "holds no JSON object"),
        (lambda index: {}, "is damaged"),
        (lambda index: {"metadata": {}, "weight_map": {}}, "is damaged"),
        (lambda index: {"metadata": {}, "weight_map": ["one.safetensors"]}, "is damaged"),
        (lambda index: {"weight_map": index["weight_map"]}, "is damaged"),
        (lambda index: {"metadata": {}, "weight_map": {"a": None}}, "lacks 1 of its 1 files"),
        (lambda index: {"metadata": {}, "weight_map": {"a": "../../one.safetensors"}}, "files beside it"),
    ],
)
def test_damaged_indices(folder, weights, change, text):
    sharded(folder, weights, change)
    assert text in refusal(load_model, folder)


# Processors


def test_an_image_token_that_the_tokenizer_does_not_have(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    without = copy.deepcopy(tokenizer)
    without["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != "<image>"]
    without["model"]["vocab"].pop("<image>", None)
    (folder / "tokenizer.json").write_text(json.dumps(without))
    text = refusal(load_processor, folder)
    assert "has no token '<image>'" in text or "an image is token" in text


@pytest.mark.parametrize("number", [5, 299, 1_000_000, -1, 10**30])
def test_an_image_token_of_another_model(folder, number):
    edited(folder / "config.json", image_token_index=number)
    assert f"an image is token 4 ('<image>') for the tokenizer of {folder} and {number}" in refusal(
        load_processor, folder
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 14),
        ("patch_size", 0),
        ("patch_size", "8"),
        ("patch_size", None),
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_select_strategy", None),
    ],
)
def test_a_processor_of_another_model(folder, field, value):
    edited(folder / "processor_config.json", **{field: value})
    assert f"{field} is {value!r} for the processor" in refusal(load_processor, folder)
    with pytest.raises(FoveateError, match=field):
        load(folder)


@pytest.mark.parametrize(("width", "height"), [(336, 336), (224, 224), (96, 96), (192, 96)])
def test_a_processor_of_another_size(folder, width, height):
    size = {"width": width, "height": height}
    edited(folder / "processor_config.json", image_processor__size=size, image_processor__crop_size=size)
    processor, family = load_processor(folder), family_without_weights(folder)
    inputs = question_inputs(processor, Image.new("RGB", (50, 50)), "what is it ?")
    with pytest.raises(FoveateError, match=rf"{width} x {height} pixels, and the encoder .* 192 x 192"):
        layout_of_prompt(family, inputs)


@pytest.mark.parametrize("extra", [0, 5])
def test_a_processor_that_counts_other_tokens(folder, extra):
    edited(folder / "processor_config.json", num_additional_image_tokens=extra)
    inputs = question_inputs(load_processor(folder), Image.new("RGB", (50, 50)), "what is it ?")
    with pytest.raises(FoveateError, match=rf"writes {575 + extra} tokens for 1 image, and the encoder makes 576"):
        layout_of_prompt(family_without_weights(folder), inputs)


def test_a_tokenizer_with_more_words_than_the_model(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["what"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    inputs = question_inputs(load_processor(folder), Image.new("RGB", (50, 50)), "what is it ?")
    with pytest.raises(FoveateError, match="writes token 100000, and the model's vocabulary has 300 tokens"):
        layout_of_prompt(family_without_weights(folder), inputs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_additional_image_tokens", "1"),
        ("image_processor__image_mean", "x"),
        ("image_processor__image_mean", [0.5, 0.5]),
        ("image_processor__rescale_factor", "x"),
        ("image_processor__size", {"height": 0, "width": 0}),
        ("image_processor__size", {"height": -1, "width": -1}),
        ("image_processor__size", {"height": "192", "width": "192"}),
    ],
)
def test_processors_whose_numbers_make_no_sense(folder, field, value):
    edited(folder / "processor_config.json", **{field: value})
    with pytest.raises(FoveateError):
        question_inputs(load_processor(folder), Image.new("RGB", (50, 50)), "what is it ?")


# Chat templates


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for", "unexpected"),
        ("{{ raise_exception('no images here') }}", "no images here"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(5) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ messages[0].nosuch.nosuch }}", "nosuch"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ 1 | nosuch }}", "No filter named 'nosuch'"),
        ("{% include 'secret' %}", "no loader"),
        ("{{ 'x' * 20000000 }}", "it writes 20,000,000 characters"),
        ("user : <image> assistant :", "it leaves out the question"),
    ],
)
def test_chat_templates(folder, template, text):
    (folder / "chat_template.jinja").write_text(template)
    processor = load_processor(folder)
    with pytest.raises(FoveateError, match="has no usable chat template") as caught:
        question_inputs(processor, Image.new("RGB", (50, 50)), "what is it ?")
    assert text in str(caught.value)


@pytest.mark.parametrize("written", ["", "<image><image>"])
def test_a_chat_template_with_other_images(folder, written):
    (folder / "chat_template.jinja").write_text(f"{written}{{{{ messages[0]['content'][-1]['text'] }}}}")
    processor = load_processor(folder)
    with pytest.raises(FoveateError, match="<image> tokens"):
        question_inputs(processor, Image.new("RGB", (50, 50)), "what is it ?")


def test_a_chat_template_that_never_ends(folder, monkeypatch):
    monkeypatch.setattr("foveate.chat_template._SECONDS", 0.2)
    loop = "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2
    (folder / "chat_template.jinja").write_text(loop)
    processor = load_processor(folder)
    before = set(threading.enumerate())
    with pytest.raises(FoveateError, match="it is not done after 0 seconds"):
        question_inputs(processor, Image.new("RGB", (50, 50)), "what is it ?")
    # Nor does it go on in the background.
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repetition_penalty", -1),
        ("repetition_penalty", "x"),
        ("forced_eos_token_id", 10**7),
        ("begin_suppress_tokens", "x"),
        ("suppress_tokens", [10**6]),
        ("penalty_alpha", 0.6),
        ("assistant_early_exit", 99),
        ("prompt_lookup_num_tokens", -3),
    ],
)
def test_generation_configurations(folder, field, value):
    edited(folder / "generation_config.json", **{field: value})
    assert f"{field} in the generation_config.json" in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("image_processor__size", {"height": 10**9, "width": 10**9}, "size.height is 1000000000"),
        ("image_processor__crop_size", {"height": 0, "width": 0}, "crop_size.height is 0"),
        ("image_processor__image_mean", [float("nan")] * 3, "image_mean is nan"),
        ("image_processor__image_std", [float("inf")] * 3, "image_std is inf"),
        ("image_processor__image_std", [0.0] * 3, "image_std is 0.0"),
        ("image_processor__rescale_factor", float("nan"), "rescale_factor is nan"),
    ],
)
def test_processors_with_numbers_out_of_range(folder, field, value, text):
    edited(folder / "processor_config.json", **{field: value})
    assert text in refusal(load_processor, folder)
