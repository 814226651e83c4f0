"""Every method on images of several grids, with a budget for the image and one for each tile."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from given import alone, tokens
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from variants import keeps_its_budget, spec_of, variants

from foveate.errors import FoveateError, KeepError, SpecError
from foveate.methods import Method
from foveate.methods.tiles import plan_of
from foveate.plan import Plan
from foveate.schedule import ExpectedTokens
from foveate.spec import parse
from foveate.tokens import Layout, Origin, Segment, Signals, VisualTokens

TILED = Layout((Segment(1, 3, 4), Segment(1, 6, 7, rows=(2, 4), columns=(3, 4))))
"""A base, and four tiles, two of them as large as each other would be without what is cut away as padding."""
EVEN = Layout((Segment(1, 4, 4), Segment(1, 8, 8, rows=(4, 4), columns=(4, 4))))
quick = settings(deadline=None, max_examples=60)


def method_of(text: str) -> Any:
    return parse(text).steps[0].method


SPECS = [spec for spec in map(spec_of, variants()) if keeps_its_budget(method_of(spec.format(k=5)))]


def check(plan: Plan, count: int, content: int) -> None:
    """A plan over `content` tokens that keeps `count` in every image."""
    assert plan.valid is None or bool(plan.valid.all())
    assert plan.slot.shape == (3, count)
    assert (plan.slot.diff(dim=1) > 0).all()
    assert plan.slot.min() >= 0
    assert plan.slot.max() < content
    if plan.group is not None:
        assert torch.equal(plan.group.gather(1, plan.slot), torch.arange(count).expand(3, -1))
        assert (plan.size() > 0).all()


@pytest.mark.parametrize(("spec", "keep"), product(SPECS, [1, 20, 0.25]))
def test_a_budget_for_the_image(spec: str, keep: float) -> None:
    whole = tokens(TILED)
    method = method_of(spec.format(k=keep))
    check(plan_of(method, whole), method.count(TILED), TILED.content)
    assert method.count(TILED) <= method.keep.count(TILED.content)


@pytest.mark.parametrize(("spec", "keep"), product(SPECS, [5, 0.25]))
def test_a_budget_for_each_tile_is_each_tile_alone(spec: str, keep: float) -> None:
    for layout in (TILED, EVEN):
        whole = tokens(layout)
        method = method_of(spec.format(k=keep) + ":per=tile")
        plan = plan_of(method, whole)
        out = plan.apply(whole.features)
        tile_of = torch.full((layout.content,), -1)
        expected = 0
        for number, (segment, index) in enumerate(layout.tiles):
            tile_of[index] = number
            if isinstance(keep, int) and keep >= segment.count:
                one = Plan(slot=torch.arange(segment.count).expand(3, -1))
            else:
                one = method.plan(alone(whole, segment, index))
            mine = tile_of[plan.slot] == number
            assert torch.equal(plan.slot[mine].view(3, -1), index[one.slot])
            torch.testing.assert_close(out[mine].view(3, -1, 8), one.apply(whole.features[:, index]))
            expected += one.slot.shape[1]
        check(plan, expected, layout.content)
        assert ExpectedTokens.of(layout).after(method).layout.content == expected


@pytest.mark.parametrize("spec", SPECS)
def test_one_grid_is_one_tile(spec: str) -> None:
    given = tokens((6, 7))
    image, tile = (plan_of(method_of(spec.format(k=5) + per), given) for per in ("", ":per=tile"))
    assert torch.equal(image.slot, tile.slot)
    torch.testing.assert_close(image.apply(given.features), tile.apply(given.features), rtol=0, atol=0)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """One to three grids, each cut into up to nine tiles; some tiles are padding alone."""
    cuts = st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda lengths: sum(lengths) > 0)
    segments: list[Segment] = []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = tuple(draw(cuts)), tuple(draw(cuts))
        segments.append(Segment(1, sum(rows), sum(columns), rows, columns))
    return Layout(tuple(segments))


@given(layouts(), st.sampled_from([1, 2, 7, "0.25", "0.5"]), st.sampled_from([1, 3, "0.5"]), st.data())
@quick
def test_two_steps_per_tile(layout: Layout, keep: int | str, then: int | str, data: st.DataObject) -> None:
    """The second step finds the tokens of each tile, wherever the first one left them."""
    names = st.sampled_from(["random", "pool", "cluster", "cls", "divprune", "stride", "prumerge"])
    first, second = (method_of(f"{data.draw(names)}:{amount}:per=tile") for amount in (keep, then))
    whole = tokens(layout)
    if len(layout.tiles) == 1:
        # One tile is an image, which can't keep more than it has.
        assume(isinstance(keep, str) or keep <= layout.content)
        assume(isinstance(then, str) or then <= first.keep.count(layout.content))
    one = plan_of(first, whole)
    left = ExpectedTokens.of(layout).after(first)
    check(one, left.layout.content, layout.content)
    assert left.tiles is not None
    answers = {kind: one.select(answer) for kind, answer in whole.signals._of_kind.items()}
    origin = Origin(layout, one.slot, tuple(tile.content for tile in left.tiles))
    middle = VisualTokens(one.apply(whole.features), left.layout, Signals(None, answers), origin)
    two = plan_of(second, middle)
    both = one.compose(two, layout.content)
    check(both, left.after(second).layout.content, layout.content)
    for tile, (_, index) in zip(left.tiles, layout.tiles, strict=True):
        expected = tile.content
        if second.keep.tokens is None or second.keep.tokens < tile.content:
            expected = second.count(tile)
        assert torch.isin(both.slot, index).sum(dim=1).tolist() == [expected] * 3


def test_one_tile_keeps_no_more_than_it_has() -> None:
    one = Layout((Segment(1, 2, 3),))
    method = method_of("random:7:per=tile")
    for wrong in (lambda: ExpectedTokens.of(one).after(method), lambda: plan_of(method, tokens(one))):
        with pytest.raises(KeepError, match="more than the 6 tokens"):
            wrong()
    assert ExpectedTokens.of(EVEN).after(method_of("random:99:per=tile")).layout.content == EVEN.content


def test_tiles_that_an_earlier_step_left_open() -> None:
    method = method_of("random:2:per=tile")
    with pytest.raises(FoveateError, match="write per=tile at the earlier steps too"):
        ExpectedTokens.of(EVEN).after(method_of("cls:9")).after(method)
    slot = torch.arange(9).expand(3, -1)
    given = replace(tokens((3, 3)), origin=Origin(EVEN, slot))
    with pytest.raises(FoveateError, match="write per=tile at the earlier steps too"):
        plan_of(method, given)
    assert plan_of(method, replace(given, origin=Origin(Layout((Segment(1, 4, 4),)), slot))).slot.shape == (3, 2)


@dataclass(frozen=True)
class Positive(Method):
    """Tokens whose first feature is positive, and the first token of all."""

    adaptive = True

    def plan(self, tokens: VisualTokens) -> Plan:
        """Some images keep more than others."""
        mask = tokens.features[..., 0] > 0
        mask[:, 0] = True
        plan = Plan.keeping(mask)
        numbers = torch.arange(plan.slot.shape[1]).expand_as(plan.slot)
        group = torch.full(mask.shape, -1).scatter_reduce(1, plan.slot, numbers, "amin", include_self=False)
        # What isn't kept flows into the first token.
        return replace(plan, group=group.masked_fill(~mask, 0))


def test_a_mean_over_layers_is_an_images() -> None:
    with pytest.raises(SpecError, match="with per=tile write one keep per layer"):
        parse("pyramiddrop:mean=64:per=tile@1,2")


def test_ragged_plans_of_tiles_are_joined() -> None:
    """Tiles that keep different numbers in different images: real slots first, and what flows where stays."""
    whole = tokens(EVEN)
    method = Positive(per="tile")
    plan = plan_of(method, whole)
    assert plan.valid is not None
    out = plan.apply(whole.features)
    counts = torch.zeros(3, dtype=torch.int64)
    for segment, index in EVEN.tiles:
        one = method.plan(alone(whole, segment, index))
        valid = torch.ones_like(one.slot, dtype=torch.bool) if one.valid is None else one.valid
        counts += valid.sum(dim=1)
        values = one.apply(whole.features[:, index])
        for image in range(3):
            kept = plan.valid[image] & torch.isin(plan.slot[image], index)
            assert torch.equal(plan.slot[image, kept], index[one.slot[image, valid[image]]])
            torch.testing.assert_close(out[image, kept], values[image, valid[image]])
    assert torch.equal(plan.valid.sum(dim=1), counts)
    assert (plan.valid.int().diff(dim=1) <= 0).all()
