"""Decoders whose last layers read keys and values of earlier ones: what a step leaves out must be gone there, too."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import test_contract as contract
import test_visibility as visibility
import torch
from rows.gemma4 import ROW, make_gemma4
from rows.row import Row
from torch import Tensor

from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import family_class, family_of

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


@torch.no_grad()
def test_router_logits_keep_their_columns() -> None:
    model = shared(EXPERTS)
    inputs = EXPERTS.inputs("t6 A t5")
    with apply(model, "random:6@1"):
        logits = model(**inputs, output_router_logits=True).router_logits
    assert [each.shape for each in logits] == [(inputs["input_ids"].shape[1], 4)] * 3
