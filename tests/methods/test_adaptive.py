"""Methods that look at an image to tell how much of it remains."""

from typing import Any

import pytest
import torch
from given import tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError, SpecError
from foveate.methods import HiRED, Method, PruMerge, PruMergePlus, method_class, method_names
from foveate.methods.prumerge import most_outliers, outliers
from foveate.plan import Plan
from foveate.spec import parse
from foveate.tokens import EncoderAttention, Layout, Segment, VisualTokens

quick = settings(deadline=None, max_examples=40)
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prumerge", {}),
    ("prumerge", {"extra": False}),
    ("prumerge", {"ratio": 0.1, "neighbours": 2}),
    ("prumerge-plus", {}),
    ("prumerge-plus", {"ratio": 0.25, "extra": False}),
)


def rows(plan: Plan, images: int) -> list[list[int]]:
    valid = torch.ones_like(plan.slot, dtype=torch.bool) if plan.valid is None else plan.valid
    return [plan.slot[image][valid[image]].tolist() for image in range(images)]


@quick
@given(
    st.sampled_from(OPTIONS),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["random", "ties", "equal"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_remains_is_within_its_bounds(
    option: tuple[str, dict[str, Any]], grid: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    name, options = option
    method: Method = method_class(name)(**options)
    assert method.keep.auto
    assert method.adaptive
    given_tokens = tokens(grid, kind, dtype=dtype)
    fewest, most = method.bounds(given_tokens.layout)
    assert 1 <= fewest <= most <= given_tokens.layout.content
    assert most == method.count(given_tokens.layout)
    assert fewest == most or method.ragged
    plan = method.plan(given_tokens)
    out = plan.apply(given_tokens.features)
    assert out.isfinite().all()
    assert out.dtype == dtype
    kept = rows(plan, 3)
    for image, slots in enumerate(kept):
        assert fewest <= len(slots) <= most
        assert slots == sorted(set(slots))
        assert (plan.size()[image, : len(slots)] > 0).all()
        assert (plan.size()[image, len(slots) :] == 0).all()
        assert (out[image, len(slots) :] == 0).all()
        alone = method.plan(tokens(grid, kind, dtype=dtype, order=[image]))
        assert rows(alone, 1) == [slots]
        torch.testing.assert_close(alone.apply(given_tokens.features[[image]])[0], out[image, : len(slots)])
    assert rows(method.plan(tokens(grid, kind, dtype=dtype, order=[2, 0, 1])), 3) == [kept[2], kept[0], kept[1]]


@quick
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_outliers_are_at_most_what_lies_above_the_third_quartile(count: int, seed: int) -> None:
    score = torch.rand(4, count, generator=torch.Generator().manual_seed(seed)) ** 30
    assert (outliers(score) <= most_outliers(count)).all()
    spread = torch.cat([torch.zeros(count - most_outliers(count)), 1 + torch.arange(most_outliers(count)).float()])
    if count > 1 and most_outliers(count) > 1:
        assert int(outliers(spread[None])[0]) >= 1


def test_outliers_by_hand() -> None:
    """Q1 = 2, Q3 = 4, so above 7."""
    assert outliers(torch.tensor([[1.0, 2, 3, 4, 8], [1.0, 2, 3, 4, 7]])).tolist() == [1, 1]
    assert outliers(torch.tensor([[1.0, 2, 2, 2, 3, 3, 3, 4, 9, 9, 2, 3]])).tolist() == [2]


def test_the_extra_token_is_all_that_was_not_kept() -> None:
    attention = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1]])
    features = torch.eye(5)[None]
    given_tokens = VisualTokens.of(features, (1, 5), encoder_attention=attention, encoder_keys=torch.randn(1, 5, 3))
    plan = PruMerge(neighbours=0).plan(given_tokens)
    assert plan.slot.tolist() == [[1, 4]]
    torch.testing.assert_close(plan.apply(features)[0], torch.tensor([[0, 1.0, 0, 0, 0], [0.1, 0, 0.1, 0.1, 0.1]]))
    assert PruMerge(keep=1, neighbours=0).plan(given_tokens).slot.tolist() == [[1]]


def test_plus_adds_an_even_grid() -> None:
    attention = torch.rand(1, 240, generator=torch.Generator().manual_seed(0))
    attention[0, [17, 30, 101, 102]] = 10
    keys = torch.randn(1, 240, 4)
    given_tokens = VisualTokens.of(keys, (15, 16), encoder_attention=attention, encoder_keys=keys)
    # Four of 240 stand out: every (240 // 4 // 3)-th token.
    slots = set(PruMergePlus(extra=False).plan(given_tokens).slot[0].tolist())
    assert slots == {17, 30, 101, 102} | set(range(0, 239, 20))
    told = PruMergePlus(keep=9, extra=False).plan(given_tokens).slot[0].tolist()
    assert set(told) >= {17, 101, 102, 30, 90, 150, 210}


def test_only_some_methods_decide() -> None:
    can = {name for name in method_names() if method_class(name).adaptive}
    assert {"prumerge", "prumerge-plus"} <= can
    assert str(parse("prumerge")) == "prumerge:auto"
    assert parse("prumerge:auto") == parse("prumerge")
    assert str(parse("prumerge:64:extra=false")) == "prumerge:64:extra=false"
    with pytest.raises(SpecError, match="in place of a keep"):
        parse("prumerge:64:ratio=0.1")
    with pytest.raises(SpecError, match="above 0"):
        parse("prumerge:ratio=0.0")


def test_plans_from_masks() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    plan = Plan.keeping(mask)
    assert plan.valid is None
    assert plan.slot.tolist() == [[0, 2], [0, 1]]
    assert torch.equal(Plan.keeping(mask, 2).slot, plan.slot)
    nothing = Plan.keeping(torch.tensor([[False, False], [True, False]]))
    assert nothing.valid is not None
    assert nothing.valid.tolist() == [[False], [True]]


def test_hired_drops_what_is_left_over_only_if_told() -> None:
    layout = Layout((Segment(1, 3, 3),) * 5)
    generator = torch.Generator().manual_seed(1)
    answers = {EncoderAttention(layer): torch.rand(4, 45, generator=generator) for layer in (-2, 0)}
    given_tokens = VisualTokens.of(torch.zeros(4, 45, 1), layout, signals=answers)
    for kept in range(1, 46):
        assert HiRED(keep=kept).plan(given_tokens).slot.shape == (4, kept)
        drop = HiRED(keep=kept, remainder="drop")
        fewest, most = drop.bounds(layout)
        counts = [len(each) for each in rows(drop.plan(given_tokens), 4)]
        assert 1 <= fewest <= min(counts) <= max(counts) <= most == kept
    assert not HiRED(keep=4).ragged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("visionzip:64:contextual=-1", "no number of tokens"),
        ("vispruner:64:important=1.5", "no share"),
        ("vispruner:64:step=0", "at least 1"),
        ("holov:64:windows=0", "windows must be a whole number from 1 on, not 0"),
        ("hired:64:alpha=2.0", "no share"),
        ("prumerge:neighbours=-1", "no number of tokens"),
        ("cluster:64:take=best", "mean or weighted or medoid or salient"),
    ],
)
def test_options_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse(text)


def test_more_contextual_tokens_than_tokens() -> None:
    with pytest.raises(FoveateError, match="ask for fewer"):
        parse("visionzip:4:contextual=5").steps[0].method.count(Layout((Segment(1, 3, 3),)))
