"""Decoders whose layers hold a memory of what they read, as linear attention does: what is refused, what is held."""

import copy
from typing import Any

import pytest
import torch
from rows import ROWS, Row
from test_contract import CHAT, SELECT, generate, logits
from versions import CACHE, cache_of_output

from foveate.costmodel.decoder_shape import Attention, read_decoder
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_of


@pytest.fixture(params=[row for row in ROWS if not row.full_attention], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def test_steps_inside_the_decoder_are_refused(row: Row, model: Any) -> None:
    family = family_of(model)
    for layer in range(1, family.decoder_depth):
        with pytest.raises(FoveateError) as caught, apply(model, f"random:6@{layer}"):
            pass
        if family.memory_kinds(layer):
            kinds = ", ".join(family.memory_kinds(layer))
            assert f"layers of {kinds} have taken into their memory already; use @input" in str(caught.value)
        else:
            assert "all that steps can reach in" in str(caught.value)
    for spec in ("fastv:6", "sparsevlm:0.5"):
        with pytest.raises(FoveateError, match=r"acts inside the decoder, and all that steps can reach in .* @input"):
            apply(model, spec)


@torch.no_grad()
def test_a_call_outside_leaves_a_memory_as_it_was(row: Row, model: Any) -> None:
    """One token or several, which change it in different ways."""
    inputs, token = row.inputs(CHAT), torch.full((1, 1), 33)
    with apply(model, SELECT):
        cache = cache_of_output(model(**inputs, use_cache=True))
        expected = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
    for more in (token, token.expand(1, 3)):
        with pytest.raises(FoveateError, match=r"without the foveate\.apply"):
            model(input_ids=more, **{CACHE: cache})
    with apply(model, SELECT):
        assert torch.equal(model(input_ids=token, **{CACHE: cache}).logits, expected)


@torch.no_grad()
def test_a_cache_that_is_emptied_begins_again(row: Row, model: Any) -> None:
    inputs, token = row.inputs("t9"), torch.full((1, 1), 33)
    with apply(model, SELECT):
        cache = cache_of_output(model(**row.inputs(CHAT), use_cache=True))
        cache.reset()
        for name in family_of(model).memories:  # a dense text-only call trips over what another call left here
            setattr(family_of(model).core, name, None)
        assert torch.equal(model(**inputs, **{CACHE: cache}, use_cache=True).logits, logits(model, inputs))
        assert model(input_ids=token, **{CACHE: cache}).logits.isfinite().all()


def test_only_full_attention_holds_visual_tokens(row: Row, model: Any) -> None:
    kinds = family_of(model).layer_kinds()
    mixers = [layer.mixer for layer in read_decoder(model.config.get_text_config()).layers]
    for kind, mixer in zip(kinds, mixers, strict=True):
        assert isinstance(mixer, Attention) == (kind == "full_attention")
        assert (mixer.cache(200, 2) == mixer.cache(100, 2)) == (kind != "full_attention")


def test_a_long_answer(row: Row, model: Any) -> None:
    """Longer than the chunks in which linear attention reads a prompt."""
    inputs = row.inputs(CHAT)
    with apply(model, "random:1.0"):
        kept = generate(model, inputs, 80)
    assert torch.equal(kept, generate(model, inputs, 80))
