"""`apply` as a block and as a handle, specs in every form, and plans as data."""

import gc
import warnings
from typing import Any

import pytest
import torch
from rows import LLAVA, ROWS

import foveate
from foveate import FoveateError, FoveateWarning
from foveate.methods import Cluster, FastV
from foveate.spec import Step, parse

ROW = LLAVA
PROMPT = "t6 A t5"


@pytest.fixture
def model() -> Any:
    return ROW.model()


@pytest.fixture
def inputs() -> dict[str, Any]:
    return ROW.inputs(PROMPT)


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_a_handle_acts_until_it_is_closed(model: Any, inputs: dict[str, Any]) -> None:
    dense, before = model(**inputs).logits, hooks_of(model)
    with foveate.apply(model, "cluster:4"):
        expected = model(**inputs).logits
    run = foveate.apply(model, "cluster:4")
    assert torch.equal(model(**inputs).logits, expected)
    assert run.report().after == 4
    run.close()
    run.close()
    assert hooks_of(model) == before
    assert torch.equal(model(**inputs).logits, dense)
    assert run.report().after == 4
    with pytest.raises(FoveateError, match="this apply of cluster:4 has ended; call"), run:
        pass


def test_a_handle_may_be_entered_once(model: Any) -> None:
    run = foveate.apply(model, "cluster:4")
    with run, pytest.raises(FoveateError, match="entered already"), run:
        pass
    with foveate.apply(model, "cluster:4"):
        pass


def test_an_apply_that_nobody_holds_warns_and_ends(model: Any) -> None:
    before = hooks_of(model)
    with pytest.warns(FoveateWarning, match=r"handle of foveate.apply\(model, \"cluster:4\"\) was dropped"):
        foveate.apply(model, "cluster:4")
    assert hooks_of(model) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with foveate.apply(model, "cluster:4"):
            gc.collect()
            assert hooks_of(model) > before


@pytest.mark.parametrize(
    "spec",
    [
        "cluster:4+fastv:2@1",
        parse("cluster:4+fastv:2@1"),
        [Cluster(keep=4), FastV(keep=2).at(1)],
        (Cluster(keep=4), Step(FastV(keep=2), (1,))),
        ["cluster:4", "fastv:2@1"],
    ],
    ids=["text", "spec", "methods", "steps", "texts"],
)
@torch.no_grad()
def test_a_spec_comes_in_any_form(model: Any, inputs: dict[str, Any], spec: Any) -> None:
    with foveate.apply(model, spec) as run:
        model(**inputs)
    assert str(run.spec) == "cluster:4+fastv:2@1"
    assert run.report().images[0].layers == (4, *[2] * (len(run.report().images[0].layers) - 1))


@torch.no_grad()
def test_compress_and_encode_take_methods(model: Any, inputs: dict[str, Any]) -> None:
    expected = foveate.compress(model, inputs, "cluster:4")
    assert torch.equal(foveate.compress(model, inputs, Cluster(keep=4))["input_ids"], expected["input_ids"])
    encoded = foveate.encode(model, inputs, Cluster(keep=4))
    short = foveate.compress(model, inputs, [Cluster(keep=4)], encoded=encoded)
    assert torch.equal(short.images[0].features, expected.images[0].features)


def test_what_is_no_spec_is_refused(model: Any) -> None:
    with pytest.raises(FoveateError, match="a spec is text"):
        foveate.encode(model, ROW.inputs(PROMPT), 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FoveateError, match="a spec is text"):
        foveate.apply(model, 64)  # pyright: ignore[reportArgumentType]
    with foveate.apply(model, "cluster:4"):
        pass


def test_what_was_called_cut_says_its_new_name(model: Any, inputs: dict[str, Any]) -> None:
    (image,) = foveate.compress(model, inputs, "cluster:4").images
    with pytest.raises(AttributeError, match=r"write image\.slot for image\.cut\.slot"):
        _ = image.cut


@pytest.mark.parametrize("row", [row for row in ROWS if row.takes("stride:3@1")], ids=lambda row: row.name)
@torch.no_grad()
def test_plans_say_which_tokens_are_kept_and_where_the_others_went(row: Any) -> None:
    any_model, inputs = row.model(), row.inputs("t6 A t5", "t2 B t9 C t3")
    with foveate.apply(any_model, "cluster:6+stride:3@1+pool:2@2") as run:
        any_model(**inputs)
    assert len(run.plans) == 3
    for image, count in zip(run.plans, run.report().images, strict=True):
        tokens = image.seen.content
        for layer in range(len(count.layers)):
            kept, into = image.kept(layer), image.into(layer)
            structural = count.layers[layer] - len(kept)
            assert (structural > 0) == bool(image.layout.structural)
            assert (kept.diff() > 0).all()
            # Kept tokens flow into themselves, or into the token that stands for their group; none into a dropped one.
            assert into.shape == (tokens,)
            assert set(into[into >= 0].tolist()) == set(kept.tolist())
        assert sorted(image.steps) == [0, 1, 2]
        assert (image.into(0) >= 0).all()
        assert (image.into(1) == -1).any()


@torch.no_grad()
def test_plans_of_images_of_which_nothing_is_left_and_of_tokens_that_flow_into_several(
    model: Any, inputs: dict[str, Any]
) -> None:
    with foveate.apply(model, "cluster:4+vtw@2") as run:
        model(**inputs)
    (image,) = run.plans
    assert image.kept().numel() == 0
    assert (image.into() == -1).all()
    assert len(image.kept(1)) == 4
    with foveate.apply(model, "prumerge-plus:auto") as run:
        model(**inputs)
    (image,) = run.plans
    assert torch.equal(image.into()[image.kept()], image.kept())


@torch.no_grad()
def test_plans_of_beams_and_of_tokens_that_stay_whole(model: Any, inputs: dict[str, Any]) -> None:
    with foveate.apply(model, "random:3@1") as run:
        model.generate(**inputs, max_new_tokens=2, num_beams=3, do_sample=False)
    (image,) = run.plans
    assert torch.equal(image.kept(0), torch.arange(image.seen.content))
    assert torch.equal(image.into(0), torch.arange(image.seen.content))
    assert len(image.kept()) == 3
    assert torch.equal(image.into()[image.kept()], image.kept())
