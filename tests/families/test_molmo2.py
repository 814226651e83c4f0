"""Molmo2: prompts without breaks, inputs that don't fit, norms and rotary embeddings of its other decoders."""

from typing import Any

import pytest
import torch
from rows import ROWS
from test_contract import generate, logits

from foveate.engine import apply, compress
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_class, family_of

ROW: Any = next((row for row in ROWS if row.name == "molmo2"), None)

pytestmark = pytest.mark.skipif(ROW is None, reason="this transformers has no Molmo2")


@pytest.fixture(scope="module")
def model() -> Any:
    return ROW.model()


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("high", [True, False])
def test_rows_without_breaks(model: Any, low: bool, high: bool) -> None:
    """The processor may leave breaks out, of each grid by itself."""
    inputs = ROW.inputs("t4 A t3 B t5")
    ids: list[int] = []
    has = True
    for token in inputs["input_ids"][0].tolist():
        has = low if token == 9 else high if token == 7 else has
        if has or token != ROW.break_token:
            ids.append(token)
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs |= ROW.types_of(inputs["input_ids"])
    family = family_of(model)
    layouts = family.layouts(inputs)
    assert [layout.content for layout in layouts] == [ROW.pictures[letter].content for letter in "AB"]
    rows = [[grid.h for grid in layout.segments] for layout in layouts]
    assert [len(layout.structural) for layout in layouts] == [low * first + high * second for first, second in rows]
    dense = logits(model, inputs)
    for spec in ("random:1.0", "random:1.0@1"):
        with apply(model, spec):
            torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-5)
    with apply(model, "random:6") as run:
        found = generate(model, inputs, 4)
    assert all(6 <= image.after <= 6 + 6 * (low + high) for image in run.report().images)
    assert torch.equal(generate(model, compress(model, inputs, "random:6"), 4), found)
    assert torch.equal(family.token_types(inputs["input_ids"]), inputs["mm_token_type_ids"])


@pytest.mark.parametrize("changed", [{"qk_norm_type": "olmo"}, {"norm_after": True}, {"rope_scaling_layers": [1, 2]}])
def test_other_decoders(changed: dict[str, Any]) -> None:
    whole = ROW.model().config
    for name, value in changed.items():
        setattr(whole.text_config, name, value)
    torch.manual_seed(0)
    model = type(ROW.model())(whole).eval()
    inputs = ROW.inputs("t4 A t5")
    assert family_of(model).has_own_keys()
    dense = logits(model, inputs)
    with apply(model, "fastv:1.0@2"):
        torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-5)


def test_images_of_several_prompts_are_joined(model: Any) -> None:
    one, two = ROW.pixels("A"), ROW.pixels("BC")
    for name, value in family_of(model).joined([one, two]).items():
        assert torch.equal(value, ROW.pixels("ABC")[name]), name


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_grids": None}, "needs pixel_values, image_token_pooling, image_grids"),
        ({"image_grids": torch.tensor([[6, 6, 7, 6]])}, "78 tokens, and image_token_pooling has the patches of 85"),
        ({"image_grids": torch.tensor([[6, 6]])}, r"image_grids \(images, 4\)"),
        ({"pixel_values": torch.ones(5, 100, 48)}, r"\(crops, 121 patches, values\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model: Any, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        compress(model, ROW.inputs("t4 A t5") | changed, "random:6")


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("vision_config", "model_type", "clip_vision_model", "clip_vision_model encoder"),
        ("vision_config", "image_size", [44, 40], "squares of more than 8 patches"),
        ("vision_config", "image_size", [32, 32], "squares of more than 8 patches"),
        ("adapter_config", "vision_feature_layer", [3, 1], "layers from -3 to 2 are"),
        ("adapter_config", "vision_feature_layer", [], "layers from -3 to 2 are"),
    ],
)
def test_configurations_that_are_refused(part: str, field: str, value: Any, words: str) -> None:
    config = ROW.model().config
    object.__setattr__(getattr(config, part), field, value)
    with pytest.raises(UnsupportedFamily, match=words):
        family_class(config).of_config(config)
