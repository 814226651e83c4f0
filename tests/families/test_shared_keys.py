"""Decoders whose last layers read keys and values of earlier ones: what a step leaves out must be gone there, too."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import test_contract as contract
import test_visibility as visibility
import torch
from rows.gemma4 import ROW, make_gemma4
from rows.row import INSTALLED, Row
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.costmodel import cost_of_layouts, device, read_model
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_class, family_of
from foveate.schedule import last_layer

KINDS = ("sliding_attention", "full_attention") * 3
SHARED = replace(
    ROW,
    name="shared keys",
    types=None,
    make=partial(make_gemma4, directions=None, kinds=KINDS, shared=2, attention_k_eq_v=False, use_double_wide_mlp=True),
)
EXPERTS = replace(
    ROW,
    name="experts beside the MLP",
    make=partial(
        make_gemma4,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    ),
)
_models: dict[tuple[str, str], Any] = {}


def shared(row: Row, attention: str = "eager") -> Any:
    if (row.name, attention) not in _models:
        _models[row.name, attention] = row.model(attention)
    return _models[row.name, attention]


POINTS = {
    "keeping everything, input": lambda row, model: contract.test_keeping_everything_is_the_untouched_model(
        row, model, "random:1.0"
    ),
    "dropping at the input": lambda row, model: contract.test_dropping_is_masking(row, model, "random:6"),
    "batch, input": lambda row, model: contract.test_a_batch_is_its_samples_alone(row, model, "cluster:6"),
    **{point: check for point, check in visibility.POINTS.items() if "by hand" not in point},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("row", [SHARED, EXPERTS], ids=lambda row: row.name)
def test_points_of_the_contract(row: Row, point: str, attention: str) -> None:
    POINTS[point](row, shared(row, attention))


def test_each_layer_names_the_one_whose_keys_it_reads() -> None:
    model = shared(SHARED)
    assert family_of(model).key_layers() == (0, 1, 2, 3, 2, 3)
    assert family_class(model.config).of_config(model.config).key_layers() == (0, 1, 2, 3, 2, 3)
    assert family_of(shared(EXPERTS)).key_layers() == (0, 1, 2)


@pytest.mark.parametrize("spec", ["random:6@3", "random:9@2+random:6@4", "vtw@5"])
def test_a_step_after_the_keys_that_later_layers_read_is_refused(spec: str) -> None:
    with pytest.raises(FoveateError, match=r"layer 4 reads the keys and values of layer 2, .* from 0 to 2"):
        apply(shared(SHARED), spec)


@torch.no_grad()
def test_what_is_dropped_before_them_is_gone_in_every_layer() -> None:
    """Were a dropped token still among the keys of the last layers, its pixels would matter."""
    model = shared(SHARED)
    inputs = SHARED.inputs("t6 A t5")
    seen: list[Tensor] = []
    last = family_of(model).decoder_layers[-1]
    handle = last.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[1]))  # pyright: ignore
    with apply(model, "random:6@2"):
        model(**inputs)
    handle.remove()
    assert seen[0].shape[-2:] == (6 + 13, 6 + 13)


alone = pytest.mark.skipif(INSTALLED < (5, 23), reason="transformers runs every layer on every token")


@alone
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_last_layers_see_the_last_token_alone(attention: str, side: str) -> None:
    """As in the untouched model; but not where what comes out of every layer is wanted, or a step acts inside."""
    model = shared(SHARED, attention)
    inputs = SHARED.inputs("t6 A t5", "t2 B t3", side=side)
    seen: list[int] = []
    last = family_of(model).decoder_layers[-1]
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))  # pyright: ignore
    try:
        with apply(model, "random:6") as run:
            whole = model(**inputs, use_cache=True).logits[:, -1:]
            last_alone = model(**inputs, use_cache=True, logits_to_keep=1).logits
            model(**inputs, use_cache=True, logits_to_keep=1, output_hidden_states=True)
        with apply(model, "random:6@2"):
            model(**inputs, use_cache=True, logits_to_keep=1)
    finally:
        handle.remove()
    assert {image.after for image in run.report().images} == {6}
    torch.testing.assert_close(last_alone, whole, atol=1e-5, rtol=1e-5)
    columns = 6 + 13
    assert seen == [columns, 1, columns, columns]


@alone
def test_costs_count_the_last_layers_on_the_last_token_alone() -> None:
    """No step, one before the decoder, one inside it; torch's own counter says so."""
    model = shared(SHARED)
    inputs, family = SHARED.inputs("t6 A t5"), family_of(model)
    for spec in ("random:1.0", "random:6", "random:6@2"):
        with apply(model, spec), FlopCounterMode(display=False, depth=9) as counter, torch.inference_mode():
            model(**inputs, use_cache=True, logits_to_keep=1)
        counts = counter.get_flop_counts().items()
        (done,) = (sum(of.values()) for name, of in counts if name.endswith("model.language_model"))
        told = cost_of_layouts(
            read_model(model.config), spec, family.layouts(inputs), 13, 1, 1, device("h100"), "float32"
        )
        assert told.part("prefill").flops == pytest.approx(done, rel=0.005), spec


@pytest.mark.parametrize("read", [0, 2])
def test_a_layer_is_searched_among_those_whose_keys_are_read(read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(shared(SHARED))
    assert last_layer(family) == 2
    monkeypatch.setattr(type(family), "key_layers", lambda self: (0, 1, 2, 3, read, 3))
    assert last_layer(family) == read


@torch.no_grad()
def test_router_logits_keep_their_columns() -> None:
    model = shared(EXPERTS)
    inputs = EXPERTS.inputs("t6 A t5")
    with apply(model, "random:6@1"):
        logits = model(**inputs, output_router_logits=True).router_logits
    assert [each.shape for each in logits] == [(inputs["input_ids"].shape[1], 4)] * 3
