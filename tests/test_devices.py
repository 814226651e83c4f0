"""Devices, dtypes and quantisation: what can't be met is one line, before anything is loaded."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from foveate import devices
from foveate.devices import (
    checked_device,
    devices_of,
    load_arguments,
    placement_of,
    synchronize,
    usable_device,
    usable_dtype,
)
from foveate.engine.timing import now
from foveate.errors import FoveateError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "moon"}, "this machine has no device 'moon'; use cpu"),
        ({"device": "meta"}, "this machine has no device 'meta'"),
        ({"device": "gpu"}, "this machine has no device 'gpu'; use cpu, cuda, cuda:1 (the second GPU), mps, or auto"),
        ({"device": "cpu:5"}, "this machine has no device 'cpu:5'"),
        ({"device": ""}, "this machine has no device ''"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "cuda:-1"}, "cuda:-1"),
        ({"device": "cuda:123456789012345678901234567890"}, "this machine has no device"),
        (
            {"device": "cpu", "dtype": "float12"},
            "there is no dtype 'float12' here; use float32, bfloat16",
        ),
        ({"device": "cpu", "dtype": "int8"}, "there is no dtype 'int8' here"),
        ({"device": "cpu", "dtype": torch.int8}, "int8 holds no floating-point numbers"),
        ({"device": "cpu", "dtype": torch.float8_e4m3fn}, "cpu can't compute in float8_e4m3fn"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
        ({"device_map": "everywhere"}, "there is no device map 'everywhere'; use auto, balanced"),
        ({"device": "cpu", "quantize": "2bit"}, "there is no quantisation '2bit'; use 4bit or 8bit"),
    ],
)
def test_what_cannot_be_met_is_one_line(arguments, words):
    with pytest.raises(FoveateError) as caught:
        load_arguments(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(FoveateError, match=r"no device 'cuda:7'; (torch .* is built without CUDA|torch finds no GPU)"):
        usable_device("cuda:7")
    with pytest.raises(FoveateError, match="no device 'cuda'; torch"):
        checked_device("cuda")
    assert usable_device("auto") == CPU
    with pytest.raises(FoveateError, match="no device 'mps'"):
        usable_device("mps")


def test_gpus_that_are_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA L4 number {device.index}")
    assert usable_device("auto") == torch.device("cuda:0")
    with pytest.raises(FoveateError, match=r"use cpu, or cuda:0 \(NVIDIA L4 number 0\), cuda:1 \(NVIDIA L4 number 1\)"):
        usable_device("cuda:7")


def test_every_dtype_runs_on_a_cpu():
    assert [usable_dtype(name, CPU) for name in devices.DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    assert load_arguments() == {}
    assert load_arguments("cpu", "auto") == {"device_map": {"": CPU}, "dtype": "auto"}
    assert load_arguments(device_map="auto") == {"device_map": "auto"}


def test_bitsandbytes_that_is_not_there(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(FoveateError, match="4bit needs bitsandbytes, which is not installed: pip install bitsandbytes"):
        load_arguments("cpu", quantize="4bit")


def test_settings_of_bitsandbytes(monkeypatch):
    """With a package that says what it can do, as bitsandbytes does."""
    fake = types.ModuleType("bitsandbytes")
    fake.__spec__ = importlib.util.spec_from_loader("bitsandbytes", None)
    fake.__version__, fake.supported_torch_devices = "0.50.0", {"cuda"}  # pyright: ignore
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: True)
    with pytest.raises(FoveateError, match=r"bitsandbytes 0.50.0 can't quantise on cpu, only on cuda; leave the"):
        load_arguments("cpu", quantize="8bit")
    fake.supported_torch_devices = {"cpu", "cuda"}  # pyright: ignore
    four = load_arguments("cpu", quantize="4bit")["quantization_config"]
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)
    half = load_arguments("cpu", "float16", quantize="4bit")["quantization_config"]
    assert half.bnb_4bit_compute_dtype == torch.float16
    assert load_arguments("cpu", quantize="8bit")["quantization_config"].load_in_8bit
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(FoveateError, match="older than transformers needs: pip install -U bitsandbytes"):
        load_arguments("cpu", quantize="4bit")


def test_where_a_model_is(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    assert placement_of(model).title == "bfloat16 on cpu"
    model[0].to("meta")
    model.hf_device_map = {"0": "cpu", "1": "cpu"}  # pyright: ignore
    assert devices_of(model) == (CPU,)
    model.hf_device_map = {"0": "cuda:1", "1": "cuda:0", "2": "disk", "3": "cpu"}  # pyright: ignore
    assert devices_of(model) == (torch.device("cuda:1"), torch.device("cuda:0"), CPU)
    monkeypatch.setattr(devices, "card", lambda device: "NVIDIA L4" if device.type == "cuda" else None)
    assert placement_of(model).title == "bfloat16 on cuda:1, cuda:0, offloaded to disk, cpu (NVIDIA L4)"


def test_a_loaded_model_is_where_it_was_asked_for():
    import foveate

    model, _ = foveate.load(device="cpu", dtype="bfloat16")
    assert placement_of(model).to_dict() == {"device": "cpu", "card": None, "dtype": "bfloat16", "quantize": None}
    spread, _ = foveate.load(device_map="auto")
    assert spread.dtype == torch.float32
    assert placement_of(spread).device == ("cuda:0" if torch.cuda.is_available() else "cpu")


def test_clocks_wait_for_every_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    places = [torch.device(name) for name in ("cuda:0", "cpu", "cuda:1", "mps")]
    now(places)
    assert waited == [places[0], places[2], places[3]]
    now(places[0], synchronise=False)
    synchronize([CPU])
    assert len(waited) == 3


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_models_answer(quantize):
    pytest.importorskip("bitsandbytes")
    import foveate
    from foveate import asking
    from foveate.prompts import question_inputs
    from foveate.scenes import scene

    model, processor = foveate.load(device="auto", dtype="bfloat16", quantize=quantize)
    assert placement_of(model).title.startswith(f"bfloat16, {quantize}, on ")
    one = scene(3)
    inputs = question_inputs(processor, one.image, one.questions[0].text)
    for spec in ("cluster:64", "cls:64", "fastv:0.5@2"):
        assert asking.ask(model, processor, inputs, spec, 2).text
