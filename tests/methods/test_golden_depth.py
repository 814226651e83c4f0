"""Agreement with the authors' own code, of the rules that act inside the decoder (tests/golden/README.md)."""

from typing import Any

import numpy as np
import pytest
import torch
from test_golden import load, named

from foveate.methods import DART, FastV, PyramidDrop, SparseVLM, SparseVLMPlus
from foveate.methods.dart import largest, take_least_like
from foveate.methods.sparsevlm import raters
from foveate.tokens import Behind, DecoderAttention, DecoderInput, DecoderKeys, Keep, RotaryLogits, Text, VisualTokens


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


@pytest.mark.parametrize("file", named("sparsevlm"))
def test_sparsevlm(file: str) -> None:
    parameters, arrays = load(file)
    given = sparse_tokens(parameters, arrays)
    index = torch.from_numpy(arrays["index"])
    kept = index.shape[1]
    theirs = torch.zeros(1, parameters["text_tokens"], dtype=torch.bool).scatter(
        1, torch.from_numpy(arrays["text_rater_index"]), True
    )
    assert torch.equal(raters(given), theirs)

    beside = SparseVLM(keep=Keep.of(kept), recycle="beside")
    torch.testing.assert_close(beside.score(given), torch.from_numpy(arrays["scores"]))
    plan = beside.plan(given)
    assert plan.group is not None
    merged = torch.from_numpy(arrays["merged_tokens"])
    count = kept + merged.shape[1]
    assert beside.count(given.layout) == plan.slot.shape[1] == count == int(arrays["visual_tokens_out"])
    out = plan.apply(given.features)[0]
    # The kept ones stand alone in their groups; recycled ones make up the others.
    recycled = torch.from_numpy(arrays["recycle_index"])[0].sort().values
    alone = torch.isin(plan.slot[0], index[0])
    assert torch.equal(plan.slot[0, alone], index[0])
    assert torch.equal((~torch.isin(plan.group[0], alone.nonzero()) & (plan.group[0] >= 0)).nonzero()[:, 0], recycled)
    torch.testing.assert_close(out[alone], given.features[0, index[0]])
    # Theirs come in the order of their clusters' scores, ours in that of their places.
    distance = torch.cdist(out[~alone], merged[0])
    assert distance.min(dim=1).values.max() < 1e-4
    assert distance.argmin(dim=1).unique().numel() == merged.shape[1]

    # The same in number when merged tokens count towards the budget, and without any.
    within = SparseVLM(keep=Keep.of(count)).plan(given)
    assert torch.equal(within.slot, plan.slot)
    without = SparseVLM(keep=Keep.of(kept), recycle="none").plan(given)
    assert torch.equal(without.slot, index)


@pytest.mark.parametrize("file", named("sparsevlm_plus"))
def test_sparsevlm_plus(file: str) -> None:
    parameters, arrays = load(file)
    given = sparse_tokens(parameters, arrays)
    begin, count, words = parameters["v_token_start"], parameters["image_tokens"], parameters["text_tokens"]
    width = parameters["head_dim"]
    away = torch.arange(words)[:, None] + count - torch.arange(count)
    turn = away[..., None] * parameters["rope_base"] ** (-torch.arange(0, width, 2) / width)
    rotary = (2 * turn.double().cos().sum(dim=-1) / width**0.5).float()[None]
    attention = torch.from_numpy(arrays["text_attention_heads"])
    answers = {
        DecoderAttention("text", "previous", "each"): attention,
        RotaryLogits(): rotary,
        DecoderInput("visual"): given.signals[DecoderInput("visual")],
        DecoderInput("text"): given.signals[DecoderInput("text")],
        Behind(): given.signals[Behind()],
    }
    given = VisualTokens.of(given.features, given.layout, signals=answers)
    index = torch.from_numpy(arrays["index"])
    rule = SparseVLMPlus(keep=Keep.of(index.shape[1]), heads=arrays["selected_heads"].shape[1])
    scores = torch.from_numpy(arrays["scores"])
    torch.testing.assert_close(rule.score(given), scores, atol=1e-4, rtol=1e-3)
    assert torch.equal(rule.plan(given).slot, index)
    places = torch.from_numpy(arrays["position_ids_out"])[0]
    assert torch.equal(places[begin : begin + index.shape[1]] - begin, index[0]), "positions are kept"


def sparse_tokens(parameters: dict[str, Any], arrays: dict[str, np.ndarray]) -> VisualTokens:
    """Tokens at the layer behind the one whose attention is read."""
    begin, count = parameters["v_token_start"], parameters["image_tokens"]
    attention = torch.from_numpy(arrays["text_attention_heads"]).mean(dim=1)
    answers: dict[Any, torch.Tensor] = {
        DecoderAttention("text", "previous"): attention,
        DecoderInput("visual"): torch.from_numpy(arrays["features"]),
        DecoderInput("text"): torch.from_numpy(arrays["text_embeds"]),
        Behind(): torch.ones(attention.shape[:2], dtype=torch.bool),
    }
    features = torch.from_numpy(arrays["layer_hidden"])[:, begin : begin + count]
    return VisualTokens.of(features, tuple(arrays["grid"].tolist()), signals=answers)


@pytest.mark.parametrize("file", named("dart"))
def test_dart(file: str) -> None:
    parameters, arrays = load(file)
    begin, count = parameters["vision_token_start_index"], parameters["vision_token_length"]
    states = torch.from_numpy(arrays["last_layer_state"])
    keys = torch.from_numpy(arrays["keys_heads"]).transpose(1, 2).flatten(2)
    visual, text = slice(begin, begin + count), slice(begin + count, None)
    answers: dict[Any, torch.Tensor] = {
        DecoderKeys("visual", "previous"): keys[:, visual],
        DecoderKeys("text", "previous"): keys[:, text],
        Text(): states[:, text],
        Behind(): torch.ones(states[:, text].shape[:2], dtype=torch.bool),
    }
    given = VisualTokens.of(states[:, visual], (1, count), signals=answers)
    pivots, words = parameters["pivot_image_token"], parameters["pivot_text_token"]
    assert torch.equal(largest(keys[:, visual])[:, :pivots], torch.from_numpy(arrays["pivot_image_index"]))
    assert torch.equal(largest(keys[:, text])[:, :words], torch.from_numpy(arrays["pivot_text_index"]))

    # Served in the port's order (that of a set of numbers) the pivots take what they take there.
    visits = torch.from_numpy(arrays["pivot_visit_order"])[0]
    own = torch.from_numpy(arrays["pivot_image_index"])
    taken = torch.zeros(1, count, dtype=torch.bool).scatter(1, own, True)
    taken = take_least_like(given.features, states[:, visits], taken, [parameters["per_pivot"]] * len(visits))
    index = torch.from_numpy(arrays["index"])
    assert torch.equal(taken.nonzero()[:, 1], index[0])

    # In our order the pivots stay the same, and so does the number.
    plan = DART(keep=Keep.of(parameters["kept"]), pivots=pivots, text_pivots=words).plan(given)
    assert plan.slot.shape == index.shape
    assert torch.isin(own, plan.slot).all()
    ours = torch.cat([own[0] + begin, torch.from_numpy(arrays["pivot_text_index"])[0] + begin + count])
    assert set(ours.tolist()) == set(visits.tolist())
    taken = torch.zeros(1, count, dtype=torch.bool).scatter(1, own, True)
    taken = take_least_like(given.features, states[:, ours], taken, [parameters["per_pivot"]] * len(visits))
    assert torch.equal(plan.slot[0], taken.nonzero()[:, 1])
