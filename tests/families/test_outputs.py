"""Every output of a call has the length that went in: one value for each column that the caller passed."""

from typing import Any

import pytest
import torch
from rows import Row
from torch import Tensor
from versions import CACHE, cache_of_output

from foveate.engine import apply, compress
from foveate.families import family_of

PROMPTS = ("t6 A t5", "t2 B t9 C t3", "t11")
SPECS = ("random:6", "fastv:0.5@1", "random:9+fastv:0.3@1+vtw@2")


@pytest.fixture
def eager(row: Row) -> Any:
    """A model that gives its attention maps."""
    return row.model("eager")


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_they_have_the_length_of_the_prompt(row: Row, eager: Any, spec: str) -> None:
    inputs = row.inputs(*PROMPTS)
    rows, length = inputs["input_ids"].shape
    with apply(eager, spec):
        output = eager(**inputs, output_attentions=True, output_hidden_states=True)
    assert output.logits.shape[:2] == (rows, length)
    assert {each.shape[:2] for each in output.hidden_states} == {(rows, length)}
    assert {each.shape[2:] for each in output.attentions} == {(length, length)}
    real = inputs["attention_mask"].bool()
    for attention in output.attentions:
        sums = attention.sum(dim=3).transpose(1, 2)[real]
        torch.testing.assert_close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_attention_stands_at_the_columns_that_are_left(row: Row, eager: Any) -> None:
    inputs = row.inputs("t6 A t5")
    short = compress(eager, inputs, "stride:6")
    (image,) = short.images
    ids = inputs["input_ids"][0]
    kept = (~row.is_image(ids)) | torch.zeros_like(ids).bool()
    kept[row.is_image(ids).nonzero()[image.slot, 0]] = True
    expected = eager(**short, output_attentions=True).attentions
    with apply(eager, "stride:6"):
        output = eager(**inputs, output_attentions=True)
        again = eager(
            input_ids=inputs["input_ids"][:, -2:],
            attention_mask=torch.ones(1, len(ids) + 2, dtype=torch.long),
            **{CACHE: cache_of_output(output)},
            output_attentions=True,
        )
    for full, one in zip(output.attentions, expected, strict=True):
        torch.testing.assert_close(full[:, :, kept][..., kept], one, atol=1e-5, rtol=1e-5)
        assert full[..., ~kept].abs().max() == 0
    for full in again.attentions:
        assert full.shape[2:] == (2, len(ids) + 2)
        assert full[..., :-2][..., ~kept].abs().max() == 0
        assert full[..., :-2][..., kept].min() > 0


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_every_step_of_generate_has_them(row: Row, eager: Any, spec: str) -> None:
    inputs = row.inputs(*PROMPTS)
    rows, length = inputs["input_ids"].shape
    with apply(eager, spec):
        out = eager.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_attentions=True,
            output_hidden_states=True,
        )
    for step, (attentions, hidden) in enumerate(zip(out.attentions, out.hidden_states, strict=True)):
        new = 1 if step else length
        assert {tuple(each.shape[:2]) for each in hidden} == {(rows, new)}
        assert {tuple(each.shape[2:]) for each in attentions} == {(new, length + step)}


@pytest.mark.inside
@torch.no_grad()
def test_tuples_have_it_too(row: Row, eager: Any) -> None:
    inputs = row.inputs(*PROMPTS)
    length = inputs["input_ids"].shape[1]
    with apply(eager, "fastv:0.5@1"):
        named = family_of(eager).core(**inputs, output_attentions=True, output_hidden_states=True)
        plain = family_of(eager).core(**inputs, output_attentions=True, output_hidden_states=True, return_dict=False)
    members = [value for value in plain if isinstance(value, tuple) and isinstance(value[0], Tensor)]
    # What the encoder returned comes after the decoder's, from transformers 5.24 on.
    tensors = [each for value in members[:2] for each in value if each.ndim > 2]
    assert {each.shape[-2] for each in tensors} == {length}
    assert len(tensors) == len(named.hidden_states) + len(named.attentions)


def routers(model: Any) -> list[int]:
    """The layers of the decoder that have experts."""
    return [
        layer
        for layer, each in enumerate(family_of(model).decoder_layers)
        if any(hasattr(part, "experts") for part in each.children())
    ]


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_that_balances_experts(row: Row, spec: str) -> None:
    model = row.model()
    if not routers(model):
        pytest.skip("the model has no experts")
    inputs = row.inputs(*PROMPTS)
    ids = inputs["input_ids"]
    labels = ids.masked_fill((row.is_image(ids)) | (inputs["attention_mask"] == 0), -100)
    dense = model.train()(**inputs, labels=labels, output_router_logits=True)
    with apply(model, spec):
        output = model(**inputs, labels=labels, output_router_logits=True)
    assert [each.shape for each in output.router_logits] == [each.shape for each in dense.router_logits]
    # Llama 4 gives its logits, and no loss.
    if (balance := getattr(dense, "aux_loss", None)) is not None:
        assert output.aux_loss.item() == pytest.approx(balance.item(), rel=0.2)
    output.loss.backward()


@pytest.mark.parametrize("sparse", [[0, 1, 2], [0, 2]])
@pytest.mark.parametrize("spec", [*SPECS, "stride:0.5@1+stride:0.5@2"])
@torch.no_grad()
def test_router_logits_of_a_batch_are_its_samples_alone(row: Row, spec: str, sparse: list[int]) -> None:
    """The longest row is text, so every layer is equally wide; and a layer may have no router."""
    model = row.model()
    text = model.config.get_text_config()
    sparse = [layer for layer in sparse if layer in routers(model)]
    if not sparse:
        pytest.skip("the model has no experts")
    layers = family_of(model).decoder_layers
    for layer in set(range(len(layers))) - set(sparse):
        layers[layer].mlp = torch.nn.Linear(text.hidden_size, text.hidden_size)
    prompts = ("t90", "t6 A t5")
    both, alone = row.inputs(*prompts), row.inputs(prompts[1])
    length = alone["input_ids"].shape[1]
    with apply(model, spec):
        found = model(**both, output_router_logits=True).router_logits
        expected = model(**alone, output_router_logits=True).router_logits
    assert len(found) == len(sparse)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.unflatten(0, (2, -1))[1, -length:], two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", ["random:1.0@1", "random:1.0", "vtw@2"])
@torch.no_grad()
def test_hidden_states_are_those_of_the_dense_model(row: Row, spec: str) -> None:
    """On a model that was never asked for them: who hooks the layers first must not matter."""
    model, inputs = row.model(), row.inputs(*PROMPTS)
    with apply(model, spec):
        ours = model(**inputs, output_hidden_states=True).hidden_states
        again = model(**inputs, output_hidden_states=True).hidden_states
    dense = model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    for layer, (one, two, three) in enumerate(zip(ours, again, dense, strict=True)):
        torch.testing.assert_close(one, two)
        if spec.startswith("random") or layer < 2:
            torch.testing.assert_close(one[real], three[real], atol=1e-5, rtol=1e-5)
