"""What plans do to tokens, and that composing two is doing one after the other."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.errors import FoveateError, PlanError
from foveate.plan import Plan

quick = settings(deadline=None, max_examples=40)
KINDS = ("selection", "groups", "weights", "mix")


def random_plan(kind: str, tokens: int, kept: int, seed: int, images: int = 2) -> Plan:
    """A plan as methods make them: ascending slots, each a member of its own group, some tokens dropped."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, tokens, generator=generator).argsort(dim=1)
    slot = order[:, :kept].sort(dim=1).values
    if kind == "selection":
        return Plan(slot)
    if kind == "mix":
        mix = torch.rand(images, kept, tokens, generator=generator)
        return Plan(slot, mix=mix * (torch.rand(mix.shape, generator=generator) < 0.6))
    group = torch.randint(-1, kept, (images, tokens), generator=generator)
    group = group.scatter(1, slot, torch.arange(kept).expand(images, -1))
    weight = torch.rand(images, tokens, generator=generator) if kind == "weights" else None
    return Plan(slot, group, weight)


@st.composite
def plans(draw: st.DrawFn, tokens: int | None = None) -> tuple[Plan, int]:
    tokens = tokens or draw(st.integers(1, 12))
    kept = draw(st.integers(1, tokens))
    return random_plan(draw(st.sampled_from(KINDS)), tokens, kept, draw(st.integers(0, 999))), tokens


def features(tokens: int, images: int = 2) -> Tensor:
    return torch.randn(images, tokens, 3, generator=torch.Generator().manual_seed(tokens))


@quick
@given(plans())
def test_the_matrix_is_the_plan(both: tuple[Plan, int]) -> None:
    plan, tokens = both
    x = features(tokens)
    matrix = plan.matrix(tokens)
    assert matrix.shape == (2, plan.slot.shape[1], tokens)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix @ x, plan.apply(x))
    torch.testing.assert_close(plan.apply(x.double()), matrix.double() @ x.double())


@quick
@given(plans())
def test_select_takes_what_stands_at_the_slots(both: tuple[Plan, int]) -> None:
    plan, tokens = both
    for x in (torch.arange(2 * tokens).view(2, tokens), features(tokens), torch.rand(2, tokens, 2, 2) > 0.5):
        chosen = plan.select(x)
        assert chosen.dtype == x.dtype
        for image in range(2):
            assert torch.equal(chosen[image], x[image][plan.slot[image]])
    if plan.group is None and plan.mix is None:
        assert torch.equal(plan.apply(features(tokens)), plan.select(features(tokens)))


@quick
@given(plans())
def test_sizes_count_the_tokens_that_flow(both: tuple[Plan, int]) -> None:
    plan, tokens = both
    if plan.weight is None:
        assert torch.equal(plan.size(), (plan.matrix(tokens) != 0).sum(dim=2))
    if plan.group is not None:
        assert torch.equal(plan.size().sum(dim=1), (plan.group >= 0).sum(dim=1))


@quick
@given(plans(), st.floats(-8, 8, width=16))
def test_the_mean_of_a_constant_is_the_constant(both: tuple[Plan, int], value: float) -> None:
    plan, tokens = both
    if plan.weight is None and plan.mix is None:
        x = torch.full((2, tokens, 3), value)
        torch.testing.assert_close(plan.apply(x), x[:, : plan.slot.shape[1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_identity(dtype: torch.dtype) -> None:
    x = features(7).to(dtype)
    slot = torch.arange(7).expand(2, -1)
    for plan in (Plan(slot), Plan(slot, group=slot), Plan(slot, mix=torch.eye(7).expand(2, -1, -1))):
        assert torch.equal(plan.apply(x), x)
        assert plan.size().tolist() == [[1] * 7] * 2
        assert torch.equal(plan.compose(Plan(slot), 7).apply(x), x)


@quick
@given(plans(), st.data())
def test_composing_is_one_after_the_other(both: tuple[Plan, int], data: st.DataObject) -> None:
    first, tokens = both
    second, _ = data.draw(plans(first.slot.shape[1]))
    x = features(tokens)
    composed = first.compose(second, tokens)
    torch.testing.assert_close(composed.apply(x), second.apply(first.apply(x)))
    assert torch.equal(composed.slot, first.slot.gather(1, second.slot))
    torch.testing.assert_close(composed.matrix(tokens), second.matrix(first.slot.shape[1]) @ first.matrix(tokens))
    assert torch.equal(composed.select(x), second.select(first.select(x)))


def test_a_selection_then_a_merge_needs_the_count() -> None:
    first, second = random_plan("selection", 6, 4, 0), random_plan("groups", 4, 2, 0)
    with pytest.raises(PlanError, match="say over how many tokens"):
        first.compose(second)
    assert first.compose(random_plan("selection", 4, 2, 0)).slot.shape == (2, 2)


def test_padding_stays_padding() -> None:
    """Two images keep three and one; a later selection of two must not make the padding of the second a token."""
    slot = torch.tensor([[0, 2, 4], [1, 1, 1]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    later = Plan(torch.tensor([[0, 2], [0, 1]]))
    for first in (Plan(slot, valid=valid), Plan(slot, torch.tensor([[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]]), valid=valid)):
        both = first.compose(later, 5)
        assert both.valid is not None
        assert both.valid.tolist() == [[True, True], [True, False]]
        assert both.size()[1, 1] == 0
    ragged = Plan(later.slot, valid=torch.tensor([[True, False], [True, True]]))
    composed = Plan(slot, valid=valid).compose(ragged, 5)
    assert composed.valid is not None
    assert composed.valid.tolist() == [[True, False], [True, False]]


def test_dropped_tokens_leave_no_trace() -> None:
    plan = Plan(torch.tensor([[0, 1]]), torch.tensor([[0, 1, -1]]))
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert plan.apply(x).flatten().tolist() == [1.0, 2.0]
    assert plan.weights().tolist() == [[1.0, 1.0, 0.0]]


def test_sums_are_made_in_float32() -> None:
    """4096 halves: added up in float16 or bfloat16 they would stop growing long before."""
    x = torch.full((1, 4096, 1), 0.5, dtype=torch.bfloat16)
    plan = Plan(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 4096, dtype=torch.int64))
    assert plan.apply(x).item() == 0.5


def test_gradients_flow_through_what_is_kept() -> None:
    x = features(4).requires_grad_()
    plan = Plan(torch.tensor([[0, 2]] * 2), torch.tensor([[0, 0, 1, -1]] * 2))
    plan.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [0.5, 0.5, 1.0, 0.0]


def test_shapes_and_dtypes_are_checked() -> None:
    slot = torch.tensor([[0, 2]])
    with pytest.raises(jaxtyping.TypeCheckError, match="slot"):
        Plan(slot.float())
    with pytest.raises(jaxtyping.TypeCheckError, match="group"):
        Plan(slot, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(jaxtyping.TypeCheckError, match="valid"):
        Plan(slot, valid=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError, match="x"):
        Plan(slot).apply(torch.zeros(1, 4))


def test_one_image_of_a_batch_and_a_batch_of_images() -> None:
    """The padding of a ragged plan goes from the map too, not from the slots alone."""
    mix = torch.rand(2, 2, 3)
    plan = Plan(torch.tensor([[0, 2], [1, 1]]), mix=mix, valid=torch.tensor([[True, True], [True, False]]))
    one = plan.image(1, 1)
    assert one.slot.tolist() == [[1]]
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(one.apply(x[1:]), plan.apply(x)[1:, :1])
    merging = Plan(torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0, 0, 1], [-1, 0, 1]]))
    again = Plan.batch([merging.image(1), merging.image(0)])
    assert torch.equal(again.apply(x.flip(0)), merging.apply(x).flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_highest_are_those_of_a_stable_sort(dtype: torch.dtype) -> None:
    """Also where scores are equal, infinite or not a number, and for every keep."""
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(3, 40, generator=generator)
    equal = torch.randint(0, 4, (3, 40), generator=generator).float()
    some = random.masked_fill(random < 0.3, torch.nan)
    for score in (random, equal, equal.masked_fill(equal == 3, -torch.inf), some):
        order = score.to(dtype).argsort(dim=1, descending=True, stable=True)
        for kept in range(41):
            found = Plan.highest(score.to(dtype), kept).slot
            assert torch.equal(found, order[:, :kept].sort(dim=1).values), kept
    with pytest.raises(FoveateError, match="kept must be a whole number from 0 to 40, not 41"):
        Plan.highest(random, 41)


@pytest.mark.parametrize("shape", [(6, 8, 3, 2), (8, 6, 1, 6), (4, 6, 4, 1), (1, 12, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pooled_blocks_are_averaged_groups(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Bit for bit, of any features, and of the plans of some images."""
    rows, columns, high, wide = shape
    down, right = torch.arange(rows)[:, None] // high, torch.arange(columns) // wide
    group = (down * (columns // wide) + right).flatten().expand(2, -1)
    kept = int(group.max()) + 1
    slot = torch.stack([(group[0] == number).nonzero()[0, 0] for number in range(kept)]).expand(2, -1)
    plan, slow = Plan.averaging(slot, group, (high, wide), columns), Plan(slot, group)
    x = torch.randn(2, rows * columns, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    for features in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x[..., 3:11]):
        assert torch.equal(plan.apply(features), slow.apply(features))
    second = slice(1, 2)
    assert torch.equal(plan.rows(second).apply(x[second]), slow.apply(x)[second])
    summed = Plan(slot, group, torch.ones(group.shape))
    assert torch.equal(replace(plan, weight=summed.weight).apply(x), summed.apply(x))
    with pytest.raises(PlanError, match="this plan is for 2 images of"):
        plan.apply(x[:, 1:])
