"""What a rule does on an accelerator, and for very large images, gives the plans that a CPU makes of small ones."""

import pytest
import torch
from given import tokens
from variants import spec_of, variants

from accelerator import PLACE, Accelerator, on_accelerator, on_host
from foveate.errors import FoveateError
from foveate.methods import Agglomerative, method_class
from foveate.methods.arithmetic import linkage, products, ward
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


def blobs(count: int, width: int, things: int) -> torch.Tensor:
    """Features `(2, count, width)` around some things, and a quarter of the tokens of each image equal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, things, width, generator=generator)[:, torch.arange(count) % things]
    x = x + 0.3 * torch.randn(2, count, width, generator=generator)
    x[:, : count // 4] = x[:, :1]
    return x


@pytest.mark.parametrize("on_cpu", [True, False])
def test_ward_without_distances_merges_the_same(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ward, "_BLOCK_BYTES", 4 * 600 * 64)
    for features in (blobs(600, 16, 40), torch.randn(2, 600, 16, generator=torch.Generator().manual_seed(1))):
        given = VisualTokens.of(features, (20, 30))
        for kept in (7, 440):
            monkeypatch.undo()
            here = Agglomerative(keep=kept).plan(given)
            monkeypatch.setattr(products, "on_cpu", lambda x: on_cpu)
            monkeypatch.setattr(linkage, "MOST_BYTES", 0)
            check_same(Agglomerative(keep=kept).plan(given), here)


def test_ward_ends_where_all_tokens_are_equal_or_none_has_a_distance() -> None:
    parent, height = ward.ward_tree(torch.ones(300, 4))
    assert parent[:-2].bincount().max() == 2
    assert not height.any()
    with pytest.raises(FoveateError, match="NaN or infinity"):
        ward.ward_tree(torch.tensor([[0.0], [torch.nan]]))


def test_average_linkage_of_too_many_tokens_is_refused() -> None:
    large = VisualTokens.of(torch.zeros(1, 65_536, 1), (256, 256))
    with pytest.raises(FoveateError, match=r"36\.5 GB of distances between 65,536 tokens .* 2 GB; use linkage=ward"):
        Agglomerative(keep=64, linkage="average").plan(large)
