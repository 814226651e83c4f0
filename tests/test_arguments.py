"""Public functions refuse arguments of another kind by name, with one line."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

import foveate
from foveate.errors import FoveateError
from foveate.methods import Cluster
from foveate.prompts import question_inputs

SPEC = "cluster:64"


@pytest.fixture(scope="module")
def reference():
    model, processor = foveate.reference()
    return model, question_inputs(processor, Image.new("RGB", (192, 192)), "what is it ?")


def said(call, text):
    with pytest.raises(FoveateError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert text in str(caught.value)


CHANGES = {
    "a mask that is shorter": (lambda i: {"attention_mask": i["attention_mask"][:, :-1]}, "one value per token"),
    "a mask that is longer": (
        lambda i: {"attention_mask": torch.ones(1, 999, dtype=torch.int64)},
        "one value per token",
    ),
    "a mask of one axis": (lambda i: {"attention_mask": i["attention_mask"][0]}, "one value per token"),
    "a mask of four axes": (lambda i: {"attention_mask": i["attention_mask"][None, None]}, "one value per token"),
    "a mask as a list": (lambda i: {"attention_mask": i["attention_mask"].tolist()}, "must be a tensor"),
    "ids of one axis": (lambda i: {"input_ids": i["input_ids"][0]}, "input_ids are"),
    "ids of three axes": (lambda i: {"input_ids": i["input_ids"][None]}, "input_ids are"),
    "ids that are floats": (lambda i: {"input_ids": i["input_ids"].float()}, "must be whole numbers"),
    "ids that are bools": (lambda i: {"input_ids": i["input_ids"].bool()}, "must be whole numbers"),
    "ids as a list": (lambda i: {"input_ids": i["input_ids"].tolist()}, "must be a tensor"),
    "ids as an array": (lambda i: {"input_ids": i["input_ids"].numpy()}, "must be a tensor"),
    "no prompts": (lambda i: {"input_ids": i["input_ids"][:0]}, "at least one of each"),
    "no tokens": (lambda i: {"input_ids": i["input_ids"][:, :0]}, "at least one of each"),
    "ids without a device": (lambda i: {"input_ids": i["input_ids"].to("meta")}, "meta device"),
    "no ids": (lambda i: {"input_ids": None}, "needs input_ids; inputs_embeds alone"),
    "other labels": (lambda i: {"labels": i["input_ids"][:, :-2]}, "labels is"),
    "other positions": (lambda i: {"position_ids": torch.arange(5)[None]}, "position_ids are"),
    "no image": (lambda i: {"pixel_values": None}, "no image"),
    "two images": (lambda i: {"pixel_values": i["pixel_values"].expand(2, -1, -1, -1)}, ""),
    "no images": (lambda i: {"pixel_values": i["pixel_values"][:0]}, "at least one image"),
    "pixels of three axes": (lambda i: {"pixel_values": i["pixel_values"][0]}, "(images, channels, height, width)"),
    "pixels as integers": (lambda i: {"pixel_values": i["pixel_values"].to(torch.uint8)}, "must be floats"),
    "pixels as an array": (lambda i: {"pixel_values": i["pixel_values"].numpy()}, "must be a tensor"),
    "channels at the end": (lambda i: {"pixel_values": i["pixel_values"].permute(0, 2, 3, 1)}, "3 channels"),
    "grey pixels": (lambda i: {"pixel_values": i["pixel_values"][:, :1]}, "3 channels"),
    "smaller pixels": (lambda i: {"pixel_values": i["pixel_values"][..., :96, :96]}, "takes 192 x 192"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_inputs_of_compress(reference, name):
    model, inputs = reference
    change, text = CHANGES[name]
    said(lambda: foveate.compress(model, {**inputs, **change(inputs)}, SPEC), text)


@pytest.mark.parametrize("inputs", [None, [1], "text", 5, torch.zeros(1, 5)])
def test_inputs_that_are_no_mapping(reference, inputs):
    model, _ = reference
    for call in (foveate.compress, foveate.encode):
        said(lambda call=call: call(model, inputs, SPEC), "what the processor returned")


@pytest.mark.parametrize("model", [None, "llava", 5, []])
def test_what_is_no_model(reference, model):
    _, inputs = reference
    for call in (
        lambda: foveate.apply(model, SPEC),
        lambda: foveate.compress(model, inputs, SPEC),
        lambda: foveate.encode(model, inputs, SPEC),
    ):
        said(call, "model must be a model such as foveate.load returns")


@pytest.mark.parametrize("spec", [None, 5, b"cluster:64", [], [None], {}, Cluster, foveate.Spec(())])
def test_what_is_no_spec(reference, spec):
    model, _ = reference
    if spec == foveate.Spec(()):
        return
    with pytest.raises(FoveateError):
        foveate.apply(model, spec)


def test_lists_without_end(reference):
    endless: list = []
    endless.append(endless)
    said(lambda: foveate.as_spec(endless), "lists stand inside each other")


@pytest.mark.parametrize("encoded", [[], "x", 5, {}])
def test_images_that_were_not_encoded(reference, encoded):
    model, inputs = reference
    said(lambda: foveate.compress(model, inputs, SPEC, encoded=encoded), "what foveate.encode returned")


@pytest.mark.parametrize("images", [[5], [-1], ["0"], [0.5], None, 0])
def test_images_that_can_not_be_picked(reference, images):
    model, inputs = reference
    encoded = foveate.encode(model, inputs, SPEC)
    said(lambda: encoded.pick(images), "image")


def test_short_inputs_on_no_device(reference):
    model, inputs = reference
    short = foveate.compress(model, inputs, SPEC)
    said(lambda: short.to("nosuch"), "there is no device")
    said(lambda: short.to("cuda:99"), "this machine has no device 'cuda:99'")
    said(lambda: short.to(dtype=torch.int8), "dtype must be a float")


@pytest.mark.parametrize("value", [None, 5, "336", [5], [(336,)], [("a", 336)], [(0, 336)], {}])
def test_sizes_of_pictures(value):
    with pytest.raises(FoveateError):
        foveate.cost(None, SPEC, images=value)


@pytest.mark.parametrize("device", [None, 5, [], "nosuch"])
def test_devices_of_the_cost_model(device):
    with pytest.raises(FoveateError):
        foveate.cost(None, SPEC, device=device)


OF_OTHER_KINDS = """
import torch
import foveate.methods
from foveate.errors import FoveateError
from foveate.fingerprint import model_fingerprint
from foveate.loading import load
from foveate.registry import register
from foveate.tokens import DecoderAttention, DecoderKeys, DecoderLogits, EncoderAttention, EncoderKeys

names = ("Cluster", "Cls", "FastV", "ToMe", "Pool", "Random", "DivPrune", "VisionZip")
methods = [getattr(foveate.methods, name)(keep=4) for name in names]
signals = (DecoderAttention, DecoderKeys, DecoderLogits, EncoderAttention, EncoderKeys)
given = ("model", "revision", "device", "dtype", "device_map", "quantize")
others = (None, 1.5, True, [], {}, "two words", b"x", object(), torch.zeros(2))
calls = [
    *((method.plan, "tokens must be VisualTokens") for method in methods),
    *((method.count, "layout must be a Layout") for method in methods),
    *((lambda value, signal=signal: signal(layer=value), "layer must be") for signal in signals),
    (model_fingerprint, "core must be a torch module"),
    (register, "name of a method"),
    (lambda value: register("never", value), "name of a method"),
    (register("never"), "registered method must be a class"),
]
for call, text in calls:
    for value in others:
        try:
            found = call(value)
        except FoveateError as error:
            assert text in str(error), (text, error)
        else:
            raise AssertionError((text, value, found))
for name in given:
    for value in (3, 1.5, True, [], b"x"):
        try:
            load(**{name: value})
        except FoveateError:
            continue
        raise AssertionError((name, value))
"""


def test_arguments_of_other_kinds_without_the_checks_of_types_that_tests_add():
    ran = subprocess.run([sys.executable, "-c", OF_OTHER_KINDS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
