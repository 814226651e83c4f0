"""What every method promises, on grids, budgets and features drawn at random."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from given import tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from variants import keeps_its_budget, variants

from foveate.methods import Cls, Cluster, Method, Pool, Random, method_class, method_names
from foveate.methods.sparsevlm import SparseVLM
from foveate.tokens import Keep, VisualTokens

quick = settings(deadline=None, max_examples=40)
OPTIONS = variants()
GRIDS = {name for name in method_names() if method_class(name).fixed and method_class(name).count is not Method.count}
"""Methods that keep whole grids, which may be smaller than the budget."""
SUMS = {"visionzip", "prumerge", "prumerge-plus"}
"""Methods whose authors add what flows into a token to it."""
KINDS = ["random", "ties", "equal", "loud"]
grids = st.one_of(st.sampled_from([(1, 1), (1, 7), (7, 1), (2, 2)]), st.tuples(st.integers(1, 7), st.integers(1, 7)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, Any], int | str, dict[str, Any]]:
    """A method and how to make tokens for it."""
    grid = draw(grids)
    name, options = draw(st.sampled_from(OPTIONS))
    count = grid[0] * grid[1]
    keep = draw(st.integers(1, count) | st.sampled_from(["0.0625", "0.25", "0.5", "1.0"]))
    kind = draw(st.sampled_from(KINDS))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return name, options, keep, {"grid": grid, "kind": kind, "dtype": dtype}


@quick
@given(cases())
def test_a_plan_keeps_its_promises(case: tuple[str, dict[str, Any], int | str, dict[str, Any]]) -> None:
    name, options, keep, recipe = case
    method: Method = method_class(name)(keep=Keep.of(keep), **options)
    given_tokens = tokens(**recipe)
    count, content = method.count(given_tokens.layout), given_tokens.layout.content
    budget = method.keep.count(content)
    beside = isinstance(method, SparseVLM) and method.recycle == "beside"
    assert 1 <= count <= content if beside else 1 <= count <= budget
    assert beside or count == budget or method.name in GRIDS
    plan = method.plan(given_tokens)
    assert plan.slot.shape == (3, count)
    assert (plan.slot.diff(dim=1) > 0).all()
    assert 0 <= int(plan.slot.min()) <= int(plan.slot.max()) < content
    assert (plan.size() > 0).all()
    out = plan.apply(given_tokens.features)
    assert out.dtype == given_tokens.features.dtype
    assert out.isfinite().all()
    if plan.group is not None:
        assert torch.equal(plan.group.gather(1, plan.slot), torch.arange(count).expand(3, -1))
        dropped = int((plan.group < 0).sum())
        may_drop = isinstance(method, SparseVLM) or (isinstance(method, Pool) and method.remainder == "drop")
        assert dropped == 0 or may_drop

    again = method.plan(given_tokens)
    assert torch.equal(again.slot, plan.slot)
    shuffled = method.plan(tokens(**recipe, order=[2, 0, 1]))
    assert torch.equal(shuffled.slot, plan.slot[[2, 0, 1]])
    for one, other in ((again.group, plan.group), (shuffled.group, plan.group)):
        assert (one is None) == (other is None)
    if plan.group is not None:
        assert again.group is not None
        assert shuffled.group is not None
        assert torch.equal(again.group, plan.group)
        assert torch.equal(shuffled.group, plan.group[[2, 0, 1]])


@pytest.mark.parametrize(("name", "options"), [o for o in OPTIONS if o[1].get("iterations") != 0])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_is_the_identity(name: str, options: dict[str, Any], kind: str) -> None:
    given_tokens = tokens((3, 5), kind)
    plan = method_class(name)(keep=Keep.of(1.0), **options).plan(given_tokens)
    assert plan.slot.tolist() == [list(range(15))] * 3
    assert torch.equal(plan.apply(given_tokens.features), given_tokens.features)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_equal_tokens_stay_what_they_are(name: str, options: dict[str, Any]) -> None:
    """What flows into a token is a mean, unless a method says that it is a sum."""
    if name in SUMS:
        return
    for grid, keep in (((4, 5), 6), ((1, 9), 4), ((1, 1), 1)):
        given_tokens = tokens(grid, "equal")
        out = method_class(name)(keep=Keep.of(keep), **options).plan(given_tokens).apply(given_tokens.features)
        torch.testing.assert_close(out, torch.ones_like(out))


@quick
@given(st.data())
def test_two_methods_compose(data: st.DataObject) -> None:
    """The plan of both, over all tokens, does what the two do one after the other."""
    # The second is given as many tokens as the first is told to keep.
    names = [
        option
        for option in OPTIONS
        if option[0] not in GRIDS and keeps_its_budget(method_class(option[0])(**option[1]))
    ]
    (first, first_options), (second, second_options) = data.draw(st.tuples(*[st.sampled_from(names)] * 2))
    count = data.draw(st.integers(2, 20))
    some = data.draw(st.integers(1, count))
    few = data.draw(st.integers(1, some))
    given_tokens = tokens((1, count), data.draw(st.sampled_from(KINDS)))
    one = method_class(first)(keep=Keep.of(some), **first_options).plan(given_tokens)
    middle = one.apply(given_tokens.features)
    between = tokens((1, some))
    two = method_class(second)(keep=Keep.of(few), **second_options).plan(
        VisualTokens(middle, between.layout, between.signals, between.origin)
    )
    both = one.compose(two, count)
    close = {"rtol": 1e-5, "atol": 1e-5 * float(given_tokens.features.abs().max())}
    torch.testing.assert_close(both.apply(given_tokens.features), two.apply(middle), **close)
    assert torch.equal(both.slot, one.slot.gather(1, two.slot))
    assert (both.slot.diff(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_of_equal_scores_the_first_stays(dtype: torch.dtype) -> None:
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2, 0.3, 0.2, 0.1]], dtype=dtype)
    given_tokens = VisualTokens.of(torch.zeros(1, 8, 2), (2, 4), encoder_attention=attention)
    assert Cls(keep=4).plan(given_tokens).slot.tolist() == [[1, 2, 3, 5]]
    many = VisualTokens.of(torch.zeros(1, 600, 2), (20, 30), encoder_attention=torch.zeros(1, 600, dtype=dtype))
    assert Cls(keep=5).plan(many).slot.tolist() == [[0, 1, 2, 3, 4]]


def groups(given_tokens: VisualTokens, **options: Any) -> Tensor:
    group = Cluster(**options).plan(given_tokens).group
    assert group is not None
    return group


def test_seeds_matter_where_they_are_used() -> None:
    given_tokens = tokens((8, 8))
    slots = {tuple(Random(keep=8, seed=seed).plan(given_tokens).slot[0].tolist()) for seed in range(5)}
    assert len(slots) == 5
    drawn = [groups(given_tokens, keep=8, start="plusplus", seed=seed) for seed in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], groups(given_tokens, keep=8, start="plusplus", seed=0))
    assert torch.equal(groups(given_tokens, keep=8, seed=0), groups(given_tokens, keep=8, seed=1))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for name, options in OPTIONS:
        method_class(name)(keep=Keep.of(2), **options).plan(tokens((3, 3)))
    assert torch.equal(torch.rand(3), expected)


@quick
@given(st.integers(1, 60), st.data())
def test_pools_runs(count: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, count))
    given_tokens = tokens((1, count))
    spread = Pool(keep=kept).plan(given_tokens)
    assert set(spread.size()[0].tolist()) <= {count // kept, count // kept + 1}
    drop = Pool(keep=kept, remainder="drop").plan(given_tokens)
    assert set(drop.size()[0].tolist()) == {count // kept}
    for plan in (spread, drop):
        assert plan.group is not None
        for number, slot in enumerate(plan.slot[0].tolist()):
            members = (plan.group[0] == number).nonzero().flatten()
            assert members.diff().eq(1).all()
            assert slot == Fraction(int(members.sum()), len(members)).__floor__()
    if count % kept == 0:
        assert torch.equal(spread.slot, drop.slot)


def test_clustering_more_than_once_over_finds_better_groups() -> None:
    """More iterations never cost: the distance of tokens to their own mean goes down."""
    given_tokens = tokens((8, 8))

    def cost(iterations: int) -> float:
        plan = Cluster(keep=8, iterations=iterations).plan(given_tokens)
        assert plan.group is not None
        means = plan.apply(given_tokens.features)
        index = plan.group[..., None].expand(-1, -1, means.shape[2])
        return float((given_tokens.features - means.gather(1, index)).square().sum())

    costs = [cost(iterations) for iterations in (0, 1, 3, 10)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.95 * costs[0]
