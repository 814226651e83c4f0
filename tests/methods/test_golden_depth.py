"""Agreement with the authors' own code, of the rules that act inside the decoder (tests/golden/README.md)."""

import pytest
import torch
from test_golden import load, named

from foveate.methods import FastV, PyramidDrop
from foveate.tokens import Keep, VisualTokens


@pytest.mark.parametrize("file", named("fastv"))
def test_fastv(file: str) -> None:
    parameters, arrays = load(file)
    features = torch.from_numpy(arrays["features"])
    first, length = parameters["image_token_start_index"], parameters["image_token_length"]
    attention = torch.from_numpy(arrays["text_attention_heads"]).mean(dim=1)[:, first : first + length]
    torch.testing.assert_close(attention, torch.from_numpy(arrays["scores"]))
    given = VisualTokens.of(features, tuple(arrays["grid"].tolist()), decoder_attention=attention)
    plan = FastV(keep=Keep.of(parameters["kept"])).plan(given)
    assert torch.equal(plan.slot, torch.from_numpy(arrays["index"]))
    torch.testing.assert_close(plan.apply(features), torch.from_numpy(arrays["features_out"]), atol=1e-4, rtol=0)
    # The same as a fraction; theirs goes through a difference of floats and Python's rounding to even.
    share = Keep.of({0.75: "0.25", 0.5: "0.5", 0.9: "0.1"}[parameters["fastv_r"]])
    count = FastV(keep=share).count(given.layout)
    assert round(length * (1 - parameters["fastv_r"])) == parameters["kept"]
    assert count == (23 if length == 90 else parameters["kept"])


@pytest.mark.parametrize("file", named("pyramiddrop"))
def test_pyramiddrop(file: str) -> None:
    parameters, arrays = load(file)
    attention = torch.from_numpy(arrays["text_attention"])
    images, count = attention.shape
    index = torch.from_numpy(arrays["index"])
    hidden = torch.from_numpy(arrays["hidden_states"])
    begin = parameters["image_token_posi"]
    features = torch.stack([hidden[i, begin[i] : begin[i] + count] for i in range(images)])
    given = VisualTokens.of(features, (1, count), decoder_attention=attention)
    half = PyramidDrop(keep=Keep.of("0.5"))
    assert half.count(given.layout) == parameters["keep"] == index.shape[1]
    plan = half.plan(given)
    assert torch.equal(plan.slot, index)
    for i in range(images):
        out = torch.from_numpy(arrays["features_out"])[i, begin[i] : begin[i] + parameters["keep"]]
        torch.testing.assert_close(plan.apply(features)[i], out, atol=1e-4, rtol=0)
