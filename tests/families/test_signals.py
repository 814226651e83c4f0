"""Signals made again from a captured input, against the weights that eager attention reports."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from rows import Row
from torch import Tensor

from foveate.engine import encode
from foveate.engine.containers import images_of
from foveate.engine.encode import encode_for
from foveate.engine.hooks import EncoderHooks, hooked
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.families.family import attention_received, cls_attention
from foveate.layout import Layout, Structural
from foveate.schedule import schedule
from foveate.tokens import EncoderAttention, EncoderKeys

pytestmark = pytest.mark.encoder_signals


@torch.no_grad()
def captured(model: Any, inputs: dict[str, Tensor], layer: int) -> Any:
    family = family_of(model)
    with hooked(EncoderHooks(family, [EncoderAttention(layer=layer)], features=True)):
        capture = images_of(family.encode(inputs))
    return family, family.in_prompt(capture, range(len(capture.layouts)), inputs["input_ids"])[0]


def weights_of(model: Any, inputs: dict[str, Tensor], layer: int) -> list[Tensor]:
    """Every attention map of a layer, `(batch, heads, rows, columns)`, as eager attention softmaxed it."""
    seen: list[Tensor] = []
    family = family_of(model)
    module = family.encoder_attentions[layer]
    real = Tensor.softmax
    inside = False

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        result = real(*args, **kwargs)
        if inside:
            seen.append(result)
        return result

    def enter(*args: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*args: Any) -> None:
        nonlocal inside
        inside = False

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    Tensor.softmax = spy  # which that of torch.nn.functional calls
    try:
        with torch.no_grad():
            family.encode(inputs)
    finally:
        Tensor.softmax = real
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_attention_is_the_eager_models(row: Row, layer: int) -> None:
    model = row.model("eager")
    inputs = row.inputs("A B C A")
    family, capture = captured(model, inputs, layer)
    got = family.encoder_signal(EncoderAttention(layer=layer), capture)
    expected = row.attention(weights_of(model, inputs, layer), inputs)
    assert len(got) == len(expected) == 4
    for mine, theirs, letter in zip(got, expected, "ABCA"):
        assert mine.shape == (row.pictures[letter].content,)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert got[0].std() > 0


def test_heads_side_by_side_are_one_wide_head(row: Row) -> None:
    model = row.model()
    family, capture = captured(model, row.inputs("A B"), -1)
    wide = family.encoder_signal(EncoderAttention(layer=-1, heads="full"), capture)
    mean = family.encoder_signal(EncoderAttention(layer=-1), capture)
    for one, other, letter in zip(wide, mean, "AB"):
        assert one.shape == (row.pictures[letter].content,)
        layout = row.pictures[letter]
        # A grid may be put together from crops that overlap.
        crops = 1 + len(family.encoder_grids(layout)) - len(layout.tiles)
        for _, tile in layout.tiles:
            assert 0 < one[tile].sum() < crops + 1e-5
        assert not torch.allclose(one, other, rtol=1e-3)


def test_one_wide_head_by_hand() -> None:
    query, key = torch.randn(2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    rows, columns = (each.transpose(1, 2).reshape(2, 5, 12) for each in (query, key))
    weights = (rows @ columns.mT / 12**0.5).softmax(dim=-1)
    torch.testing.assert_close(cls_attention(query[:, :, 0], key, 9.0, "full"), weights[:, 0])
    torch.testing.assert_close(attention_received(query, key, 9.0, 2, "full"), weights.sum(1))


@pytest.mark.parametrize("heads", ["mean", "full"])
def test_keys_are_the_layers_own(row: Row, heads: Literal["mean", "full"]) -> None:
    model = row.model()
    inputs = row.inputs("A B")
    attention, hidden = family_of(model).encoder_attentions[1], []
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: hidden.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    family, capture = captured(model, inputs, 1)
    handle.remove()
    got = family.encoder_signal(EncoderKeys(layer=1, heads=heads), capture)
    expected = row.keys(attention, hidden[0], inputs)
    assert len(got) == len(expected) == 2
    for mine, theirs in zip(got, expected):
        theirs = theirs.mean(1) if heads == "mean" else theirs.flatten(1)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def with_features(layout: Layout) -> list[Structural | None]:
    """The columns of an image at which features stand: None for content, else the structural token."""
    columns: list[Structural | None] = [None] * layout.total
    for token in layout.structural:
        columns[token.place] = token
    return [token for token in columns if token is None or not token.is_text]


def by_image(model: Any, output: Any, layouts: Sequence[Layout]) -> Sequence[Tensor]:
    """What the encoder returns, whose entries may be tiles or rows of the prompt, by image."""
    entries = output.pooler_output
    if entries is None:  # the core projects what it is given
        entries = model.multi_modal_projector(output.last_hidden_state)
    rows = torch.cat([entry.flatten(0, -2) for entry in entries])
    return rows.split([len(with_features(layout)) for layout in layouts])


@torch.no_grad()
def test_features_are_what_the_projector_reads(row: Row) -> None:
    model = row.model()
    inputs = row.inputs("A B")
    family, capture = captured(model, inputs, 1)
    output = family.encode(inputs)
    wholes = by_image(model, output, capture.layouts)
    for features, layout, whole in zip(family.features(capture), capture.layouts, wholes):
        own = [place for place, token in enumerate(with_features(layout)) if token is None]
        rounding = 1e-6 * max(1.0, float(whole.abs().max()))
        torch.testing.assert_close(family.project(features), whole[own], atol=rounding, rtol=1e-6)


@torch.no_grad()
def test_what_is_in_the_prompt_is_the_models_own(row: Row) -> None:
    """Features and structural tokens, laid out as the layout says, are what the model itself makes."""
    model = row.model()
    family, capture = captured(model, row.inputs("A B C A"), 1)
    output = family.encode(row.inputs("A B C A"))
    wholes = by_image(model, output, capture.layouts)
    pieces = zip(family.projected(capture), family.structural(capture), capture.layouts, wholes)
    for projected, structural, layout, whole in pieces:
        place, _ = layout.placed(torch.arange(layout.content))
        assert torch.equal(place, torch.arange(layout.total))
        content, others = iter(projected), iter(structural)
        values = [next(content if token is None else others) for token in with_features(layout)]
        torch.testing.assert_close(torch.stack(values), whole, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_nobody_asks_for_attention_maps(row: Row) -> None:
    model = row.model()
    family = family_of(model)
    calls: list[dict[str, Any]] = []
    handle = family.tower.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    encode_for(family, row.inputs("A"), [schedule("cls:4", family)])
    handle.remove()
    assert calls
    assert not any(call.get("output_attentions") for call in calls)


def test_a_layer_that_is_not_there(row: Row) -> None:
    with pytest.raises(FoveateError, match="has 3 layers"):
        family_of(row.model()).encoder_layer(7)


def test_layouts_need_no_encoder(row: Row) -> None:
    model = row.model()
    inputs = row.inputs("t2 A t3 B")
    family = family_of(model)
    handle = family.tower.register_forward_pre_hook(lambda m, a: pytest.fail("the encoder ran"))
    layouts = family.layouts(inputs)
    handle.remove()
    assert list(layouts) == [row.pictures[x] for x in "AB"]
    assert [layout.total for layout in layouts] == [row.count("A"), row.count("B")]
    assert [layout.total for layout in encode(model, inputs).layouts] == [layout.total for layout in layouts]


@torch.no_grad()
def test_large_scores_in_half_precision() -> None:
    """Of 12,800 after scaling, and 102,400 before, which float16 doesn't hold."""
    states = torch.full((1, 2, 5, 64), 40.0, dtype=torch.float16)
    assert torch.equal(attention_received(states, states, 64**-0.5), torch.ones(1, 5))
    torch.testing.assert_close(cls_attention(states[:, :, 0], states, 64**-0.5), torch.full((1, 5), 0.2))
