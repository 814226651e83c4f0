"""DeepStack: features of earlier encoder layers ride along with the visual tokens, whatever becomes of those."""

from typing import Any

import pytest
import torch
from rows import ROWS, Row

from foveate.engine import compress, encode

DEEP = [row for row in ROWS if row.name in ("qwen3_vl", "qwen3_vl_moe")]


@pytest.fixture(params=DEEP, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def dense_companions(model: Any, inputs: dict[str, torch.Tensor]) -> list[list[torch.Tensor]]:
    """What the model itself makes: per layer, per image `(N, D)`."""
    pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    return [list(layer) for layer in model.model.get_image_features(**pixels, return_dict=True).deepstack_features]


@torch.no_grad()
def test_they_matter(row: Row, model: Any) -> None:
    short = dict(compress(model, row.inputs("t6 A t5"), "random:6"))
    dense = model(**short).logits
    layers = short["mm_encoder_outputs"]["image"].deepstack_features
    assert len(layers) == 2
    for layer in layers:
        layer[0] = torch.zeros_like(layer[0])
    assert (model(**short).logits - dense).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "spec", ["random:6", "pool:6", "cluster:6", "cluster:6@features", "pool:12@features+random:0.5"]
)
def test_they_are_moved_by_the_plan_of_their_tokens(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9 C t3")
    dense = dense_companions(model, inputs)
    short = compress(model, inputs, spec.replace("12", "0.6"))
    layers = short["mm_encoder_outputs"]["image"].deepstack_features
    assert [len(layer) for layer in layers] == [3, 3]
    for whole, cut in zip(dense, layers):
        for number, image in enumerate(short.images):
            expected = image.plan.matrix(image.before)[0] @ whole[number]
            torch.testing.assert_close(cut[number], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_they_shrink_with_the_image(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5")
    short = compress(model, inputs, "resize:0.25")
    features = short["mm_encoder_outputs"]["image"]
    assert [len(layer[0]) for layer in features.deepstack_features] == [len(features.pooler_output[0])] * 2


def test_images_encoded_once_keep_them(row: Row, model: Any) -> None:
    encoded = encode(model, row.inputs("t6 A t5", "t2 B t9"), ["random:6"]).pick([1, 0, 1])
    assert [[tuple(layer.shape) for layer in image] for image in encoded.companions] == [
        [(row.count(letter), 64)] * 2 for letter in "BAB"
    ]
