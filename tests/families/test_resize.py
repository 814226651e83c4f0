"""Shrinking images before the encoder: each family's own way."""

from typing import Any

import pytest
import torch
from rows import LLAVA, ROWS, Row, picture
from test_contract import dense_positions, generate
from versions import BEAMS_OF_SEVERAL_IMAGES

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.schedule import tokens_between
from foveate.spec import parse

QWEN = next(row for row in ROWS if row.name == "qwen2_5_vl")


@torch.no_grad()
def logits(model: Any, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits


@pytest.mark.parametrize(
    "spec", ["resize:0.25", "resize:0.3:positions=pack", "resize:0.25+random:1", "resize:6:per=tile"]
)
def test_resize_gives_the_tokens_it_counts(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3", "t11")
    family = family_of(model)
    method: Any = parse(spec).steps[0].method
    short = compress(model, inputs, spec)
    for image, layout in zip(short.images, family.layouts(inputs)):
        seen = family.shrunk_by(layout, method.shrink)
        assert tokens_between(spec, family, layout) == (image.after, image.after)
        if not row.saves(spec):
            assert image.after == image.before
            continue
        assert "+" in spec or image.after == seen.total
        assert image.after < image.before
        if row.saves("resize"):
            assert seen.content <= parse(spec).steps[0].method.keep.count(layout.content) or method.per == "tile"
    with apply(model, spec) as run:
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
    assert [image.after for image in run.report().images] == [image.after for image in short.images]
    if family.position_axes == 1:
        short = compress(model, inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}, spec)
    assert torch.equal(model.generate(**short, max_new_tokens=5, do_sample=False)[:, -5:], ids)


@BEAMS_OF_SEVERAL_IMAGES
@pytest.mark.parametrize("spec", ["resize:0.25", "resize:0.25+random:1"])
def test_beams_of_shrunk_images(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3", "t11")
    given = inputs | {"position_ids": dense_positions(model, inputs)}
    with apply(model, spec) as run:
        beams = generate(model, inputs, 5, num_beams=2)
    assert len(run.report().images) == 3
    assert torch.equal(generate(model, compress(model, given, spec), 5, num_beams=2), beams)


@torch.no_grad()
def test_features_are_those_of_the_shrunk_picture(row: Row, model: Any) -> None:
    assert tuple(row.resized) == family_of(model).resize_modes
    inputs = row.inputs("t6 A t5")
    for mode, shrunk in row.resized.items():
        spec = f"resize:0.3:mode={mode}"
        height, width = size_of(model, inputs, spec)
        expected = shrunk(model, "A", height, width)
        short = compress(model, inputs, spec)
        torch.testing.assert_close(short.images[0].features, expected, atol=1e-5, rtol=1e-5)


def size_of(model: Any, inputs: Any, spec: str) -> tuple[int, int]:
    method: Any = parse(spec).steps[0].method
    return method.shrink(family_of(model).layouts(inputs)[0])


@pytest.mark.parametrize("exact", [row for row in ROWS if row.smaller], ids=lambda row: row.name)
def test_exact_is_the_model_given_a_smaller_picture(exact: Row) -> None:
    """Its positions too, and in a prompt."""
    assert exact.smaller is not None
    model = exact.model()
    inputs = exact.inputs("t6 A t5")
    spec = "resize:0.4:mode=exact:positions=pack"
    height, width = size_of(model, inputs, spec)
    ids = inputs["input_ids"][0].tolist()
    family = family_of(model)
    small = family.shrunk(family.layouts(inputs)[0], (height, width))
    by_hand = torch.tensor([ids[:6] + exact.image_ids(small) + ids[-5:]])
    smaller = {"input_ids": by_hand, "attention_mask": torch.ones_like(by_hand), **exact.smaller("A", height, width)}
    smaller |= exact.types_of(by_hand)
    short = compress(model, inputs, spec)
    torch.testing.assert_close(logits(model, short), logits(model, smaller), atol=1e-5, rtol=1e-5)


def test_tokens_of_a_smaller_picture_stand_under_its_places() -> None:
    short = compress(LLAVA.model(), LLAVA.inputs("t6 A t5"), "resize:0.25:mode=interpolate")
    assert short.images[0].slot.tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]


def test_crops_of_one_call_share_their_size() -> None:
    tiles = next(row for row in ROWS if row.name == "llava_next")
    model = tiles.model()
    with pytest.raises(FoveateError, match="keep a fraction, or a number per=tile"):
        compress(model, tiles.inputs("t6 A t5 B t2"), "resize:12")
    alone = [compress(model, tiles.inputs(f"t6 {letter}"), "resize:12").images[0] for letter in "AB"]
    assert all(int(torch.isin(each.slot, each.layout.places).sum()) <= 12 for each in alone)
    enlarged = compress(model, tiles.inputs("t6 A t5 B t2"), "resize:12:mode=enlarge")
    assert [each.after for each in enlarged.images] == [each.before for each in enlarged.images]


def test_enlarge_keeps_the_count(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5")
    short = compress(model, inputs, "resize:0.25:mode=enlarge")
    assert short.images[0].after == short.images[0].before
    dense = compress(model, inputs, "random:1.0")
    assert (short.images[0].features - dense.images[0].features).abs().max() > 1e-3


def test_a_way_that_the_family_has_not(row: Row, model: Any) -> None:
    ways = family_of(model).resize_modes
    for mode in {"exact", "interpolate", "enlarge"} - set(ways):
        with pytest.raises(FoveateError, match=" or ".join(ways)):
            compress(model, row.inputs("t6 A t5"), f"resize:0.25:mode={mode}")


def test_patches_there_and_back() -> None:
    family: Any = family_of(QWEN.model())
    image = torch.randn(2, 3, 56, 84)
    patches = family.patchify(image, 1)
    assert torch.equal(family.unpatchify(patches, (1, 4, 6)), image)
    inputs = QWEN.inputs("t6 A t5")
    whole = family.unpatchify(inputs["pixel_values"], (1, 8, 12))
    assert torch.equal(whole[0], picture("A", 3, 112, 168))
