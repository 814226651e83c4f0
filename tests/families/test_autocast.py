"""Under `torch.autocast` a plan is made by the same arithmetic as without: training keeps what evaluation keeps."""

from typing import Any

import pytest
import torch
from rows import Row

from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError
from foveate.listing import listing
from foveate.plan import Plan
from foveate.spec import as_spec

PROMPTS = ("t6 A t5", "t2 B t9 C t3")


def specs(*places: str) -> list[str]:
    return [method.spec.replace(":1.0", ":0.5") for method in listing() if method.place in places]


def inputs_for(row: Row, spec: str) -> dict[str, torch.Tensor]:
    """Pictures, or clips for a method that acts on clips alone."""
    if as_spec(spec).steps[0].method.temporal and row.clips:
        return row.with_clips().inputs("t6 A t5", "t2 A t9")
    return row.inputs(*PROMPTS)


@pytest.mark.parametrize("spec", specs("features", "input"))
@torch.no_grad()
def test_plans_before_the_decoder_are_the_same(row: Row, model: Any, spec: str) -> None:
    """From the same encoded images: autocast changes the encoder's own numbers, as it is there to do."""
    inputs = inputs_for(row, spec)
    try:
        encoded = encode(model, inputs, spec)
    except FoveateError:
        pytest.skip("the family lacks what the method reads")
    plain = compress(model, inputs, spec, encoded)
    with torch.autocast("cpu", torch.bfloat16):
        cast = compress(model, inputs, spec, encoded)
    for one, other in zip(plain.images, cast.images, strict=True):
        assert_same(one.plan, other.plan)
        # What follows a step at @features is the projector's, which autocast runs in bf16.
        if as_spec(spec).steps[0].method.place == "input":
            torch.testing.assert_close(one.features, other.features, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [*specs("features", "input"), "cls:6@features", "divprune:6+fastv:0.5@1"])
@torch.no_grad()
def test_they_run_under_autocast(row: Row, model: Any, spec: str) -> None:
    inputs = inputs_for(row, spec)
    try:
        with apply(model, spec) as run:
            model(**inputs)
    except FoveateError:
        pytest.skip("the family lacks what the method reads")
    with torch.autocast("cpu", torch.bfloat16), apply(model, spec) as cast:
        assert model(**inputs).logits.isfinite().all()
    for one, other in zip(run.plans, cast.plans, strict=True):
        assert len(one.kept()) == len(other.kept()) or ":auto" in spec


def assert_same(one: Plan | None, other: Plan | None) -> None:
    assert (one is None) == (other is None)
    for name in ("slot", "group", "weight", "mix", "valid") if one is not None else ():
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
