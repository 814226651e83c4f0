"""Which part of an image reaches the encoder."""

from types import SimpleNamespace

import pytest
from PIL import Image

import foveate
from foveate.asking import ask, seen_part
from foveate.errors import FoveateError
from foveate.prompts import question_inputs
from foveate.scenes import scene


@pytest.mark.parametrize(
    ("size", "expected"), [({"shortest_edge": 336}, (480, 480)), ({"height": 336, "width": 672}, (320, 480))]
)
def test_processors_that_crop_show_the_middle(size, expected):
    rules = SimpleNamespace(do_center_crop=True, size=size, crop_size={"height": 336, "width": 336})
    image = Image.new("RGB", (640, 480), "red")
    image.paste("blue", (319, 0, 321, 480))
    part = seen_part(SimpleNamespace(image_processor=rules), image)
    assert part.size == expected
    assert part.getpixel((part.width // 2, part.height // 2)) == (0, 0, 255)


def test_processors_that_cut_tiles_show_all():
    rules = SimpleNamespace(
        do_center_crop=True,
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[336, 672]],
    )
    image = Image.new("RGB", (640, 480))
    assert seen_part(SimpleNamespace(image_processor=rules), image) is image


def test_processors_that_do_not_crop_show_all():
    image = Image.new("RGB", (640, 480))
    assert seen_part(SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False)), image) is image


@pytest.mark.parametrize("spec", [None, "fastv:1.0@2"])
def test_ask_obeys_the_models_own_configuration(spec):
    model, processor = foveate.reference()
    inputs = question_inputs(processor, scene(3).image, "what colour is the circle ?")
    length = inputs["input_ids"].shape[1]
    model.generation_config.min_length = length + 4
    model.generation_config.return_dict_in_generate = True
    answer = ask(model, processor, inputs, spec, 8)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False).sequences[0, length:]
    assert answer.new_tokens == len(ids) >= 4
    assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("repetition_penalty", 0),
        ("eos_token_id", "x"),
        ("num_beams", 0),
        ("penalty_alpha", 0.6),
        ("early_stopping", "x"),
    ],
)
def test_ask_refuses_a_configuration_that_cannot_be_used(setting, value):
    model, processor = foveate.reference()
    setattr(model.generation_config, setting, value)
    inputs = question_inputs(processor, scene(3).image, "what colour is the circle ?")
    with pytest.raises(FoveateError, match="generation configuration"):
        ask(model, processor, inputs)
