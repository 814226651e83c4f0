"""What a rule does on an accelerator, and for very large images, gives the plans that a CPU makes of small ones."""

import pytest
import torch
from given import tokens
from variants import spec_of, variants

from accelerator import PLACE, Accelerator, on_accelerator, on_host
from foveate.errors import FoveateError
from foveate.methods import Agglomerative, method_class
from foveate.methods.arithmetic import products
from foveate.plan import Plan
from foveate.spec import parse
from foveate.tokens import Layout, Segment, VisualTokens

NAMES = {"agglomerative", "cdpruner", "cluster", "divprune", "dpc-knn", "prumerge", "sparsevlm", "tome", "vispruner"}
SPECS = [spec_of(variant) for variant in variants() if variant[0] in NAMES]


def plan(spec: str) -> Plan:
    return parse(spec.format(k=30)).steps[0].method.plan(tokens((12, 13), images=2, width=24))


def check_same(one: Plan, other: Plan) -> None:
    assert torch.equal(one.slot, other.slot)
    assert (one.group is None) == (other.group is None)
    if one.group is not None:
        assert other.group is not None
        assert torch.equal(one.group, other.group)
    for mine, theirs in ((one.weight, other.weight), (one.mix, other.mix)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("spec", [spec_of(variant) for variant in variants(clips=True)])
def test_accelerators_plan_the_same(spec: str) -> None:
    name = spec.partition(":")[0]
    clip = method_class(name).temporal
    method = parse(spec.format(k=100 if clip else 30)).steps[0].method
    given = tokens(Layout((Segment(8, 6, 5),)) if clip else (12, 13), images=2, width=24)
    here = method.plan(given)
    with torch.no_grad(), Accelerator():
        there = method.plan(on_accelerator(given))
        out = there.apply(given.features.to(PLACE))
        check_same(on_host(there), here)
        torch.testing.assert_close(out.cpu(), here.apply(given.features))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_large_images_are_planned_the_same_in_blocks(spec: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    here = plan(spec)
    monkeypatch.setattr(products, "on_cpu", lambda x: on_cpu)
    monkeypatch.setattr(products, "WHOLE", 0)
    monkeypatch.setattr(products, "BLOCK_BYTES", 4 * 40**2)
    monkeypatch.setattr(products, "_BLOCK", 4 * 50**2)
    check_same(plan(spec), here)


def test_an_image_whose_distances_take_too_much_memory_is_refused() -> None:
    large = VisualTokens.of(torch.zeros(1, 65_536, 1), (256, 256))
    with pytest.raises(FoveateError, match=r"36\.5 GB of distances between 65,536 tokens .* up to 2 GB; use dpc-knn"):
        Agglomerative(keep=64).plan(large)
