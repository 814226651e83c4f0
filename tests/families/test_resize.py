"""Shrinking images before the encoder: each family's own way."""

from typing import Any

import pytest
import torch
from rows import ROWS, Row, picture
from torch.nn.functional import interpolate

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.models import family_of
from foveate.spec import parse

LLAVA, QWEN = ROWS[0], ROWS[1]


@torch.no_grad()
def logits(model: Any, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits


@pytest.mark.parametrize("spec", ["resize:0.25", "resize:0.3:positions=pack", "resize:0.25+random:1", "resize:6"])
def test_resize_gives_the_tokens_it_counts(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3", "t11")
    family = family_of(model)
    method: Any = parse(spec).steps[0].method
    short = compress(model, inputs, spec)
    for image, layout in zip(short.images, family.layouts(inputs)):
        height, width = method.shrink(layout)
        assert image.after == (1 if "+" in spec else height * width) < image.before
    with apply(model, spec) as run:
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
        beams = model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=2)[:, -5:]
    assert [image.after for image in run.report().images] == [image.after for image in short.images] * 2
    if family.position_axes == 1:
        short = compress(model, inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}, spec)
    assert torch.equal(model.generate(**short, max_new_tokens=5, do_sample=False)[:, -5:], ids)
    assert torch.equal(model.generate(**short, max_new_tokens=5, do_sample=False, num_beams=2)[:, -5:], beams)


def test_exact_is_the_model_given_a_smaller_picture() -> None:
    model = QWEN.model()
    inputs = QWEN.inputs("t6 A t5")
    method: Any = parse("resize:0.4:mode=exact:positions=pack").steps[0].method
    height, width = method.shrink(family_of(model).layouts(inputs)[0])
    image = picture("A", 3, 4 * 28, 6 * 28)
    small = interpolate(image[None], size=(height * 28, width * 28), mode="area")[0]
    patches = []
    for row in range(0, 2 * height, 2):
        for column in range(0, 2 * width, 2):
            for down in (0, 1):
                for right in (0, 1):
                    top, left = (row + down) * 14, (column + right) * 14
                    patches.append(small[:, top : top + 14, left : left + 14][:, None].expand(-1, 2, -1, -1).flatten())
    ids = inputs["input_ids"][0].tolist()
    by_hand = torch.tensor([ids[:6] + [QWEN.image_token] * height * width + ids[-5:]])
    expected = logits(
        model,
        {
            "input_ids": by_hand,
            "attention_mask": torch.ones_like(by_hand),
            "mm_token_type_ids": (by_hand == QWEN.image_token).int(),
            "pixel_values": torch.stack(patches),
            "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]]),
        },
    )
    short = compress(model, inputs, "resize:0.4:mode=exact:positions=pack")
    torch.testing.assert_close(logits(model, short), expected, atol=1e-5, rtol=1e-5)


def test_interpolate_is_clip_with_interpolated_positions() -> None:
    model = LLAVA.model()
    inputs = LLAVA.inputs("t6 A t5")
    small = interpolate(inputs["pixel_values"], size=(42, 42), mode="area")
    with torch.no_grad():
        hidden = model.model.vision_tower(
            small, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-2]
        expected = model.model.multi_modal_projector(hidden[:, 1:])[0]
        short = compress(model, inputs, "resize:0.25:mode=interpolate")
    assert short.images[0].after == 9
    torch.testing.assert_close(short.images[0].cut.features, expected, atol=1e-5, rtol=1e-5)
    assert short.images[0].cut.slot.tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]


def test_enlarge_keeps_the_count(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5")
    short = compress(model, inputs, "resize:0.25:mode=enlarge")
    assert short.images[0].after == short.images[0].before
    dense = compress(model, inputs, "random:1.0")
    assert (short.images[0].cut.features - dense.images[0].cut.features).abs().max() > 1e-3


def test_a_way_that_the_family_has_not() -> None:
    with pytest.raises(FoveateError, match=r"interpolate or enlarge"):
        compress(LLAVA.model(), LLAVA.inputs("t6 A t5"), "resize:0.25:mode=exact")
    with pytest.raises(FoveateError, match=r"exact or enlarge"):
        compress(QWEN.model(), QWEN.inputs("t6 A t5"), "resize:0.25:mode=interpolate")


def test_patches_there_and_back() -> None:
    family: Any = family_of(QWEN.model())
    image = torch.randn(2, 3, 56, 84)
    patches = family.patchify(image, 1)
    assert torch.equal(family.unpatchify(patches, (1, 4, 6)), image)
    inputs = QWEN.inputs("t6 A t5")
    whole = family.unpatchify(inputs["pixel_values"], (1, 8, 12))
    assert torch.equal(whole[0], picture("A", 3, 112, 168))
