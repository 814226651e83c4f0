"""What holds for every method, on tokens alone."""

import itertools

import pytest
import torch
from given import tokens
from variants import keeps_its_budget, spec_of, variants

from foveate.errors import KeepError, SpecError
from foveate.methods import method_names
from foveate.plan import Plan
from foveate.spec import parse
from foveate.tokens import Layout, Segment, VisualTokens

GRIDS = [(12, 12), (6, 10), (3, 3), (1, 7), (5, 1)]
SPECS = [spec_of(variant) for variant in variants()]


@pytest.mark.parametrize(("grid", "spec", "keep"), itertools.product(GRIDS, SPECS, [1, 2, 5, 0.25, 0.5, 1.0]))
def test_a_plan_is_what_it_says(grid: tuple[int, int], spec: str, keep: float) -> None:
    given = tokens(grid)
    if isinstance(keep, int) and keep > given.layout.content:
        return
    method = parse(spec.format(k=keep)).steps[0].method
    plan = method.plan(given)
    count = method.count(given.layout)
    assert plan.slot.shape == (3, count)
    content = given.layout.content
    assert count <= (method.keep.count(content) if keeps_its_budget(method) or method.ragged else content)
    assert plan.slot.dtype == torch.int64
    assert (plan.slot.diff(dim=1) > 0).all()
    assert plan.slot.min() >= 0
    assert plan.slot.max() < given.layout.content
    out = plan.apply(given.features)
    assert out.shape == (3, count, 8)
    if plan.group is not None:
        numbers = torch.arange(count).expand(3, -1)
        assert torch.equal(plan.group.gather(1, plan.slot), numbers)
        assert (plan.size() > 0).all()
        torch.testing.assert_close(plan.matrix() @ given.features, out)
        inside = (plan.group[:, None] == torch.arange(count)[:, None]).float()
        amounts = inside / inside.sum(dim=2, keepdim=True) if plan.weight is None else inside * plan.weight[:, None]
        torch.testing.assert_close(amounts @ given.features, out)
    elif plan.mix is not None:
        assert plan.mix.shape == (3, count, given.layout.content)
        assert (plan.mix.gather(2, plan.slot[..., None]) != 0).all()
        torch.testing.assert_close(plan.mix @ given.features, out)
    else:
        assert torch.equal(out, torch.stack([f[s] for f, s in zip(given.features, plan.slot)]))
    order = [2, 0, 1]
    assert torch.equal(method.plan(tokens(grid, order=order)).slot, plan.slot[order])
    assert torch.equal(method.plan(given).slot, plan.slot)


@pytest.mark.parametrize(("grid", "spec"), itertools.product(GRIDS, SPECS))
def test_a_plan_that_keeps_all_changes_nothing(grid: tuple[int, int], spec: str) -> None:
    """So the engine may leave it out where a method says `unchanged_if_all`."""
    given = tokens(grid)
    for keep in (1.0, given.layout.content):
        method = parse(spec.format(k=keep)).steps[0].method
        if method.keeps_all(given.layout.content):
            assert torch.equal(method.plan(given).apply(given.features), given.features)
            assert method.count(given.layout) == given.layout.content
        else:
            assert method.ragged or not method.unchanged_if_all


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(spec: str, dtype: torch.dtype) -> None:
    given = tokens((6, 6), dtype=dtype)
    out = parse(spec.format(k=9)).steps[0].method.plan(given).apply(given.features)
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("kept", [1, 5, 35, 36])
@pytest.mark.parametrize("start", ["stride", "plusplus"])
def test_clusters_of_equal_tokens(kept: int, start: str) -> None:
    """Nothing to tell them apart: every cluster still has a member."""
    features = torch.ones(2, 36, 4)
    features[1, 20:] = 3
    plan = parse(f"cluster:{kept}:start={start}").steps[0].method.plan(VisualTokens.of(features, (6, 6)))
    assert (plan.size() > 0).all()
    assert plan.size().sum(1).tolist() == [36, 36]


def test_clusters_are_found() -> None:
    centres = torch.eye(4) * 10
    label = torch.randint(0, 4, (36,), generator=torch.Generator().manual_seed(0))
    features = centres[label][None] + torch.randn(1, 36, 4) * 0.1
    plan = parse("cluster:4:start=plusplus").steps[0].method.plan(VisualTokens.of(features, (6, 6)))
    assert plan.group is not None
    assert len({(a, b) for a, b in zip(label.tolist(), plan.group[0].tolist())}) == 4


@pytest.mark.parametrize(("first", "second"), itertools.product(["random:12", "pool:12", "cluster:12"], repeat=2))
def test_compose_is_one_after_the_other(first: str, second: str) -> None:
    given = tokens((6, 6))
    one = parse(first).steps[0].method.plan(given)
    middle = one.apply(given.features)
    two = parse(second.replace("12", "5")).steps[0].method.plan(VisualTokens.of(middle, (1, 12)))
    both = one.compose(two, 36)
    torch.testing.assert_close(both.apply(given.features), two.apply(middle))
    assert torch.equal(both.slot, one.slot.gather(1, two.slot))


def test_mix_and_ragged() -> None:
    x = torch.arange(4.0).view(1, 4, 1)
    mix = Plan(slot=torch.tensor([[0, 2]]), mix=torch.tensor([[[0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5]]]))
    assert mix.apply(x).flatten().tolist() == [0.5, 2.0]
    assert mix.size().tolist() == [[2, 2]]
    ragged = Plan(slot=torch.tensor([[0, 2], [1, 1]]), valid=torch.tensor([[True, True], [True, False]]))
    assert ragged.size().tolist() == [[1, 1], [1, 0]]
    assert ragged.grouped(3).group.tolist() == [[0, -1, 1], [-1, 0, -1]]


@pytest.mark.parametrize(
    "text", ["cluster:64", "random:0.25:seed=3", "resize:0.25", "cls:0.5:positions=keep@features", "pool:1.0@16",
             "cluster:64+cls:0.5", "cls:1@2,8", "cluster:8:start=plusplus"],
)  # fmt: skip
def test_specs_go_round(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_specs_are_canonical() -> None:
    assert str(parse("cluster : 64 : seed=3 : start=stride @ input")) == "cluster:64:seed=3"
    assert str(parse("pool:.250")) == "pool:0.25"
    assert str(parse("pool")) == "pool:1.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clustre:64@2", 'did you mean "cluster"'),
        ("cluster:0", "leaves nothing"),
        ("cluster:-1", "leaves nothing"),
        ("cluster:1.5", "no fraction"),
        ("cluster:nan", "nan"),
        ("cluster:64:sed=3", 'did you mean "seed"'),
        ("cluster:64:seed=x", "whole number"),
        ("cluster:64:start=far", "stride or plusplus"),
        ("cluster:64@inptu", 'no place is called "inptu"'),
        ("", "empty spec"),
        ("cluster:64+", "no method"),
        ("cluster:64:32", "name=value"),
    ],
)
def test_specs_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse(text)


def test_an_error_shows_the_place() -> None:
    with pytest.raises(SpecError) as caught:
        parse("cls:0.5+clustre:64@2")
    first, second = str(caught.value).splitlines()
    assert first == "cls:0.5+clustre:64@2"
    assert second.startswith("        ^^^^^^^ no method is called")


def test_more_than_there_is() -> None:
    with pytest.raises(KeepError, match="more than the 9 tokens"):
        parse("random:10").steps[0].method.count(Layout((Segment(1, 3, 3),)))


def test_names() -> None:
    assert {"random", "stride", "pool", "pool2d", "resize", "cluster", "cls"} <= set(method_names())
