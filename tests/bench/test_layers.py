"""The search for the layer from which on a rule may act."""

from typing import Any

import pytest
import torch

import foveate
from foveate.bench.answers import Asker
from foveate.bench.layers import LayerEffect, LayerSearch, find_layer, practice, rule_of
from foveate.errors import FoveateError


def search(*divergences: float, below: float = 0.1) -> LayerSearch:
    effects = (LayerEffect(layer, each, 1.0) for layer, each in enumerate(divergences, start=1))
    return LayerSearch("vtw", below, 1, tuple(effects))


def test_the_first_layer_from_which_on_all_is_low() -> None:
    assert search(3.0, 0.5, 0.1, 0.02).layer == 3
    assert search(3.0, 0.5, 0.1, 0.02).spec == "vtw@3"
    # A dip is no reason to stop: later layers are worse.
    assert search(0.01, 0.5, 0.05, 0.02).layer == 3
    assert search(0.0, 0.0).layer == 1
    for none in (search(3.0, 0.5), search(0.0, 0.2), search(0.0, float("nan")), search()):
        assert none.layer is None
        assert none.spec is None
        assert none.to_dict()["layer"] is None


def by_hand(model: Any, processor: Any, number: int, rule: str) -> float:
    """KL from the rule's distribution to the dense one, for the question that the search asks about a picture."""
    picture = list(practice(number + 1))[number]
    asker = Asker(model, processor)
    prompts = asker.prompts(picture)
    ids = torch.tensor([prompts.rows[number % len(prompts.rows)]])
    inputs = {**asker.pixels([prompts]), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        dense = model(**inputs).logits[0, -1].double().softmax(-1)
        with foveate.apply(model, rule):
            short = model(**inputs).logits[0, -1].double().softmax(-1)
    return float((short * (short / dense).log()).sum())


def test_divergences_are_those_of_the_rule(deep_model: Any, processor: Any) -> None:
    model = deep_model
    steps: list[tuple[int, int]] = []
    found = find_layer(model, processor, "vtw", list(practice(2)), step=lambda *each: steps.append(each))
    layers = len(model.model.language_model.layers)
    assert [effect.layer for effect in found.effects] == list(range(1, layers))
    assert found.questions == 2
    assert steps == [(done, 2 * layers) for done in range(1, 2 * layers + 1)]
    for effect in found.effects:
        each = [by_hand(model, processor, number, f"vtw@{effect.layer}") for number in range(2)]
        assert effect.divergence == pytest.approx(sum(each) / 2, rel=1e-3, abs=1e-7)
        assert effect.divergence > 1e-4
    assert found.layer is None or found.below >= found.effects[-1].divergence


def test_a_rule_that_changes_nothing_may_act_anywhere(deep_model: Any, processor: Any) -> None:
    model = deep_model
    found = find_layer(model, processor, "stride:1.0", list(practice(1)), below=1e-9)
    assert found.layer == 1
    assert found.spec == "stride:1.0@1"
    assert all(effect.divergence < 1e-9 and effect.same == 1 for effect in found.effects)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("vtw@3", "leave it out: vtw"),
        ("pool:0.5@input", ""),
        ("pool:0.5@features", "leave it out: pool:0.5"),
        ("pool:0.5+vtw", "several steps"),
        ("resize:0.5", "before the encoder"),
    ],
)
def test_rules_that_leave_nothing_to_search(rule: str, words: str) -> None:
    if not words:
        assert str(rule_of(rule).method) == "pool:0.5"
        return
    with pytest.raises(FoveateError, match=words):
        rule_of(rule)


def test_nothing_to_ask(deep_model: Any, processor: Any) -> None:
    model = deep_model
    with pytest.raises(FoveateError, match="no picture"):
        find_layer(model, processor, "vtw", [])
    with pytest.raises(FoveateError, match="asks nothing"):
        list(practice(0))
    with pytest.raises(FoveateError, match="at least 0 and finite, not -1"):
        find_layer(model, processor, "vtw", list(practice(1)), below=-1.0)
