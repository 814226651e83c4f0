"""Under `apply`, what is passed to `generate` and to the model itself is checked before its shapes are read."""

import pytest
import torch
from PIL import Image

import foveate
from foveate.errors import FoveateError
from foveate.prompts import question_inputs


@pytest.fixture(scope="module")
def reference():
    model, processor = foveate.reference()
    return model, question_inputs(processor, Image.new("RGB", (192, 192)), "what is it ?")


WRONG = {
    "ids of one prompt": ("input_ids", lambda ids: ids[0], r"input_ids are \(\d+,\) int64"),
    "one id": ("input_ids", lambda ids: ids[0, 0], r"input_ids are \(\) int64"),
    "three axes": ("input_ids", lambda ids: ids[None], "must be whole numbers"),
    "floats": ("input_ids", lambda ids: ids.float(), "float32; they must be whole numbers"),
    "booleans": ("input_ids", lambda ids: ids.bool(), "bool; they must be whole numbers"),
    "bytes": ("input_ids", lambda ids: ids.to(torch.uint8), "uint8; they must be whole numbers"),
    "a list": ("input_ids", lambda ids: ids.tolist(), "must be a tensor"),
    "an array": ("input_ids", lambda ids: ids.numpy(), "must be a tensor"),
    "a text": ("input_ids", lambda ids: "x", "must be a tensor"),
    "a mask of one prompt": ("attention_mask", lambda mask: mask[0], "attention.mask"),
    "a mask that is too short": ("attention_mask", lambda mask: mask[:, :-1], "attention_mask is"),
    "a mask of two prompts": ("attention_mask", lambda mask: mask.repeat(2, 1), "attention_mask is"),
    "a mask as a list": ("attention_mask", lambda mask: mask.tolist(), "attention.mask"),
    "whole pixels": ("pixel_values", lambda pixels: pixels.int(), "int32; they must be floats"),
    "no image": ("pixel_values", lambda pixels: pixels[:0], "at least one image"),
    "pixels as a list": ("pixel_values", lambda pixels: pixels.tolist(), "must be a tensor"),
}


@pytest.mark.parametrize("call", ["generate", "forward"])
@pytest.mark.parametrize(("name", "change", "text"), WRONG.values(), ids=WRONG.keys())
def test_wrong_inputs_are_refused(reference, call, name, change, text):
    model, inputs = reference
    given = {**inputs, name: change(inputs[name])}
    with foveate.apply(model, "pool:9"):
        with pytest.raises(FoveateError, match=text):
            model.generate(**given, max_new_tokens=1) if call == "generate" else model(**given)
        assert model.generate(**inputs, max_new_tokens=1).shape[0] == 1


def test_positional_ids_and_positions_are_checked(reference):
    model, inputs = reference
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with foveate.apply(model, "pool:9"):
        with pytest.raises(FoveateError, match="must be whole numbers"):
            model.generate(inputs["input_ids"][0], **rest, max_new_tokens=1)
        with pytest.raises(FoveateError, match="must be whole numbers"):
            model(inputs["input_ids"].float(), **rest)
        with pytest.raises(FoveateError, match="position_ids are"):
            model(**inputs, position_ids=torch.zeros(3))
    assert "generate" not in vars(model)
