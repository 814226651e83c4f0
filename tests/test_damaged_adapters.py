"""Adapters whose files are damaged, or of another model, are refused when they are read."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import foveate
from foveate.adapters import shipped
from foveate.errors import FoveateError
from foveate.methods.arithmetic.thresholds import LearnedThresholds
from foveate.prompts import question_inputs

NAN, INF = float("nan"), float("inf")
CLASSES = {"voco": foveate.VoCo, "atp": LearnedThresholds}


@pytest.fixture(params=["voco", "atp"])
def kind(request):
    return request.param


def folder_of(kind, tmp_path):
    return shutil.copytree(shipped(kind), tmp_path / kind)


def said(kind, folder, text=""):
    read = foveate.VoCo.from_pretrained if kind == "voco" else LearnedThresholds.read
    with pytest.raises(FoveateError) as caught:
        read(str(folder))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def settings(folder, name, **values):
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({key: each for key, each in (data | values).items() if each is not ...}))


def weights(file, change):
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(stored), file)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"5", b"{}", b"[" * 100_000, b'{"format": 1}', b"\xff\xfe", b'{"format": 1e999}'],
    ids=len,
)
def test_settings_that_are_none(kind, tmp_path, content):
    folder = folder_of(kind, tmp_path)
    (folder / f"{kind}.json").write_bytes(content)
    said(kind, folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: {n: torch.full_like(t, NAN) for n, t in w.items()}, "NaN or infinite"),
        (lambda w: {n: torch.full_like(t, INF) for n, t in w.items()}, "NaN or infinite"),
        (lambda w: {n: t.to(torch.int8) for n, t in w.items()}, "is torch.int8"),
        (lambda w: {n: t.bool() for n, t in w.items()}, "is torch.bool"),
        (lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}, "is torch.float8"),
        (lambda w: {**w, "x": torch.zeros(2)}, "it holds x, which no such adapter has"),
        (lambda w: {"y": torch.zeros(2)}, "holds y"),
        (lambda w: {n: t[..., None] for n, t in w.items()}, "has the shape"),
        (lambda w: {n: torch.tensor(0.0) for n in w}, "has the shape"),
        (lambda w: {n: t[:0] for n, t in w.items()}, "has the shape"),
    ],
)
def test_weights(kind, tmp_path, change, text):
    folder = folder_of(kind, tmp_path)
    weights(folder / f"{kind}.safetensors", change)
    if text == "holds y":
        text = "which no such adapter has"
    said(kind, folder, text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"tokens": 0}, "tokens must be a whole number from 1 to 65,536, not 0"),
        ({"tokens": -1}, "not -1"),
        ({"tokens": 10**30}, "from 1 to 65,536"),
        ({"tokens": "32"}, "not '32'"),
        ({"tokens": None}, "not None"),
        ({"tokens": 32.0}, "not 32.0"),
        ({"tokens": True}, "not True"),
        ({"tokens": 33}, "should have (33, any)"),
        ({"tokens": ...}, "it lacks tokens"),
        ({"base": None}, "base is None"),
        ({"base": ...}, "it lacks base"),
        ({"base": ""}, "should be the 16 hexadecimal digits"),
        ({"base": "x"}, "base is 'x'"),
        ({"base": "BE4159362186F40C"}, "should be the 16 hexadecimal digits"),
        ({"lora": "x"}, "lora is 'x'"),
        ({"lora": ...}, "it lacks lora"),
        ({"packed": 1}, "packed is 1"),
        ({"features": 5}, "features is 5"),
        ({"nosuch": 1}, "it says nosuch"),
        ({"format": "1"}, "format"),
        ({"format": True}, "has format True, and this foveate reads 1; save it again"),
        ({"format": 2}, "has format 2, and this foveate reads 1; update foveate"),
        ({"format": None}, "format"),
    ],
)
def test_settings_of_voco(tmp_path, values, text):
    folder = folder_of("voco", tmp_path)
    settings(folder, "voco.json", **values)
    said("voco", folder, text)


@pytest.mark.parametrize(
    "features", ["nosuch:64", "", "tome:0@features", "pool:9@2", "pool:9@features", "resize:0.5", "cluster:9"]
)
def test_a_features_spec_that_can_not_be_read(tmp_path, features):
    folder = folder_of("voco", tmp_path)
    settings(folder, "voco.json", features=features)
    with pytest.raises(FoveateError):
        foveate.VoCo.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"layers": []}, "no such adapter has"),
        ({"layers": [0, 2, 4]}, "not 0"),
        ({"layers": [4, 2, 8]}, "ascending"),
        ({"layers": [2, 4, "8"]}, "not '8'"),
        ({"layers": [2, 4, 8, 9]}, "it lacks predictors.3"),
        ({"layers": [2, 4, 10**9]}, "from 1 to 1,000"),
        ({"layers": "248"}, "should be a list"),
        ({"features": -1}, "not -1"),
        ({"features": 100}, "should have (16, 100)"),
        ({"width": 10**9}, "width must be a whole number"),
        ({"width": 17}, "has the shape"),
        ({"parts": ["x"]}, "parts"),
        ({"parts": []}, "parts"),
        ({"parts": [5]}, "parts"),
        ({"parts": ["self", "self"]}, "each once"),
        ({"base": ""}, "should be the 16 hexadecimal digits"),
        ({"curve": [[1]]}, "pairs of a shift and a share"),
        ({"curve": [["a", "b"]]}, "not 'a'"),
        ({"curve": [[NAN, 0.5]]}, "NaN"),
        ({"curve": [[0, 5.0]]}, "from 0 to 1"),
        ({"curve": [[1, 0.5], [0, 0.2]]}, "must ascend"),
        ({"curve": {"a": 1}}, "should be a list"),
        ({"nosuch": 1}, "it says nosuch"),
    ],
)
def test_settings_of_atp(tmp_path, values, text):
    folder = folder_of("atp", tmp_path)
    settings(folder, "atp.json", **values)
    said("atp", folder, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: {n: torch.full_like(t, NAN) for n, t in w.items()}, "NaN or infinite"),
        (lambda w: {n: t.to(torch.int8) for n, t in w.items()}, "is torch.int8"),
        (lambda w: dict(list(w.items())[1:]), "no such adapter has"),
        (lambda w: {}, "holds none"),
        (lambda w: {**w, "x": torch.zeros(2, 2)}, "has x"),
        (lambda w: {n: t[:1] if "lora_A" in n else t for n, t in w.items()}, "should have (any, 1)"),
    ],
)
def test_lora_weights(tmp_path, change, text):
    folder = folder_of("voco", tmp_path)
    weights(folder / "lora" / "adapter_model.safetensors", change)
    said("voco", folder, text)


@pytest.mark.parametrize("alpha", [None, "x", NAN, 10**400, True])
def test_lora_scales(tmp_path, alpha):
    folder = folder_of("voco", tmp_path)
    settings(folder / "lora", "adapter_config.json", lora_alpha=alpha)
    said("voco", folder, "no complete LoRA weights")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"r": None}, "r must be a whole number from 1 on, not None"),
        ({"r": "x"}, "not 'x'"),
        ({"r": 0}, "not 0"),
        ({"r": True}, "not True"),
        ({"r": 16}, "has the rank 32, and adapter_config.json has 16"),
        ({"r": ...}, "adapter_config.json lacks r"),
        ({"lora_alpha": ...}, "adapter_config.json lacks lora_alpha"),
        ({"rank_pattern": "x"}, "rank_pattern is 'x'"),
        ({"rank_pattern": []}, "should give ranks by names of layers"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj must be a whole number"),
        ({"use_rslora": "x"}, "should be true or false"),
    ],
)
def test_lora_ranks(tmp_path, values, text):
    folder = folder_of("voco", tmp_path)
    settings(folder / "lora", "adapter_config.json", **values)
    said("voco", folder, text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"moon": 1}, 'no option for the hub is called "moon"'),
        ({"revision": 3}, "revision must be"),
        ({"revision": "v1"}, "revision is for the hub"),
    ],
)
def test_options_for_the_hub(tmp_path, options, text):
    with pytest.raises(FoveateError, match=text):
        foveate.VoCo.from_pretrained(folder_of("voco", tmp_path), **options)


def test_a_features_spec_that_keeps_more_than_an_image_has_is_refused_before_images_are_read(tmp_path, reference):
    folder = folder_of("voco", tmp_path)
    settings(folder, "voco.json", features="pool:9999:positions=pack@features")
    model, inputs = reference
    with pytest.raises(FoveateError, match="more than the 576 tokens"):
        foveate.VoCo.from_pretrained(folder).encode(model, inputs)


@pytest.fixture(scope="module")
def reference():
    model, processor = foveate.reference()
    return model, question_inputs(processor, Image.new("RGB", (192, 192)), "what is it ?")


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        ("voco", lambda w: {n: t[:, :100] for n, t in w.items()}, "width 100 and the model 192"),
        ("lora", lambda w: {n: t[:, :10] if "lora_A" in n else t for n, t in w.items()}, "a layer of 10 inputs"),
        ("lora", lambda w: {n: t[:10] if "lora_B" in n else t for n, t in w.items()}, "and 10 outputs"),
        ("lora", lambda w: {n.replace("layers.1.", "layers.99."): t for n, t in w.items()}, "no layer"),
    ],
)
def test_voco_of_another_model_is_refused_before_images_are_read(tmp_path, reference, file, change, text):
    model, inputs = reference
    folder = folder_of("voco", tmp_path)
    name = folder / ("voco.safetensors" if file == "voco" else "lora/adapter_model.safetensors")
    weights(name, lambda stored: {key: each.contiguous() for key, each in change(stored).items()})
    voco = foveate.VoCo.from_pretrained(folder)
    with pytest.raises(FoveateError, match=text):
        voco.check(model)
    with pytest.raises(FoveateError, match=text):
        voco.encode(model, inputs)


def test_an_adapter_of_another_base_is_refused_by_apply(tmp_path, reference):
    model, _ = reference
    folder = folder_of("atp", tmp_path)
    settings(folder, "atp.json", base="0" * 16)
    with pytest.raises(FoveateError, match="another base model"):
        foveate.apply(model, f"atp:mean=144:adapter={folder}")
