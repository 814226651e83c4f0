"""What the rules that act inside the decoder promise beyond what all methods do, on tokens alone."""

from typing import Any

import pytest
import torch
from given import tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError, SpecError
from foveate.layout import one_row
from foveate.methods import DART, ATPMethod, FastV, PyramidDrop, SparseVLM, SparseVLMRank, method_class
from foveate.methods.sparsevlm import raters
from foveate.spec import parse
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    Keep,
    Layout,
    Origin,
    Segment,
    Signals,
    Text,
    VisualTokens,
)

quick = settings(deadline=None, max_examples=60)
DEPTH = ["fastv", "pyramiddrop", "sparsevlm", "sparsevlm-plus", "sparsevlm-rank", "dart", "atp", "vtw"]


@pytest.mark.parametrize("name", DEPTH)
def test_they_act_inside_the_decoder(name: str) -> None:
    method = method_class(name)
    assert method.place == "decoder"
    assert method.layers == tuple(sorted(set(method.layers)))
    assert min(method.layers) >= 1
    assert f"@{','.join(map(str, method.layers))}" in str(parse(f"{name}@{','.join(map(str, method.layers))}"))


def test_which_layer_is_read() -> None:
    """FastV reads the layer before, PyramidDrop the one to come; each reads one row."""
    given_tokens = tokens((4, 6))
    for method, layer in ((FastV(keep=5), "previous"), (PyramidDrop(keep=5), "here")):
        request = DecoderAttention("last", layer)  # pyright: ignore[reportArgumentType]
        assert method.needs == (request,)
        best = given_tokens.signals[request].topk(5, dim=1).indices.sort(dim=1).values
        assert torch.equal(method.plan(given_tokens).slot, best)
    rows = FastV(keep=5, rows="text")
    mean = given_tokens.signals[DecoderAttention("text", "previous")].mean(dim=1)
    assert torch.equal(rows.plan(given_tokens).slot, mean.topk(5, dim=1).indices.sort(dim=1).values)


def test_one_rule_at_three_layers_keeps_a_share_of_what_arrives() -> None:
    counts, arrive = [], 576
    for _ in range(3):
        arrive = PyramidDrop(keep=Keep.of(0.5)).count(one_row(arrive))
        counts.append(arrive)
    assert counts == [288, 144, 72]


# VTW


def test_vtw_keeps_nothing() -> None:
    method = parse("vtw@15").steps[0].method
    assert str(parse("vtw@15")) == "vtw@15"
    assert method.count(Layout((Segment(1, 24, 24),))) == 0
    assert method.bounds(Layout((Segment(1, 24, 24),))) == (0, 0)
    plan = method.plan(tokens((4, 6)))
    assert plan.slot.shape == (3, 0)
    assert plan.slot.dtype == torch.int64
    assert plan.apply(tokens((4, 6)).features).shape == (3, 0, 8)
    assert plan.select(torch.arange(24).expand(3, -1)).shape == (3, 0)


@pytest.mark.parametrize("text", ["vtw:64@15", "vtw:0.5@15", "vtw:keep=3@15"])
def test_vtw_takes_no_keep(text: str) -> None:
    with pytest.raises(SpecError, match="takes no keep"):
        parse(text)


# SparseVLM


@quick
@given(st.integers(1, 700), st.data())
def test_merged_tokens_within_the_budget(arrive: int, data: st.DataObject) -> None:
    remain = data.draw(st.integers(1, arrive))
    layout = one_row(arrive)
    method = SparseVLM(keep=Keep.of(remain))
    assert method.count(layout) == remain
    kept, merged = method.split(arrive)
    assert kept >= merged
    assert (merged == 0) == (remain in (1, arrive))
    beside = SparseVLM(keep=Keep.of(kept), recycle="beside")
    if merged < remain // 2:  # not held down by the small budget: the authors' own number
        assert beside.count(layout) == remain


def test_published_counts() -> None:
    """Tokens behind the first layer that drops, of 576, for the tables "192" and "64": kept ones and merged ones."""
    layout = Layout((Segment(1, 24, 24),))
    assert SparseVLM(keep=Keep.of(300), recycle="beside").count(layout) == 300 + 9
    assert SparseVLM(keep=Keep.of(66), recycle="beside").count(layout) == 66 + 16


def sparse(behind: list[bool], like: list[float]) -> VisualTokens:
    """Text tokens that are more or less like the one direction in which all visual tokens point."""
    words = torch.tensor(like)[None, :, None] * torch.tensor([1.0, 0.0])
    answers: dict[Any, torch.Tensor] = {
        Behind(): torch.tensor([behind]),
        DecoderInput("visual"): torch.tensor([1.0, 0.0]).expand(1, 4, 2),
        DecoderInput("text"): words,
        DecoderAttention("text", "previous"): torch.eye(len(like), 4)[None],
    }
    return VisualTokens.of(torch.zeros(1, 4, 2), (2, 2), signals=answers)


def test_raters_mean_the_image() -> None:
    assert raters(sparse([True] * 4, [0.0, 3.0, 1.0, 2.5])).tolist() == [[False, True, False, True]]
    # Text before the image doesn't see it, however like it is.
    assert raters(sparse([False, True, True, True], [9.0, 0.0, 3.0, 0.0])).tolist() == [[False, False, True, False]]
    # None stands out: all that see the image rate it.
    assert raters(sparse([False, True, True, True], [1.0, 2.0, 2.0, 2.0])).tolist() == [[False, True, True, True]]
    assert raters(sparse([False, False, False, True], [1.0, 2.0, 2.0, 2.0])).tolist() == [[False] * 3 + [True]]
    # The rater looks at token 2 alone.
    given_tokens = sparse([False, True, True, True], [9.0, 0.0, 3.0, 0.0])
    assert SparseVLM(keep=1, recycle="none").plan(given_tokens).slot.tolist() == [[2]]


def test_only_the_best_of_the_dropped_are_recycled() -> None:
    given_tokens = tokens((10, 10))
    method = SparseVLM(keep=Keep.of(20))
    plan = method.plan(given_tokens)
    assert plan.group is not None
    kept, merged = method.split(100)
    assert kept + merged == 20
    score = method.score(given_tokens)
    for image in range(3):
        order = score[image].argsort(descending=True, stable=True)
        alone = plan.size()[image].eq(1)
        assert set(order[:kept].tolist()) <= set(plan.slot[image].tolist())
        recycled = int(0.3 * (100 - kept)) + 1
        reached = (plan.group[image] >= 0).nonzero().flatten()
        assert set(reached.tolist()) == set(order[: kept + recycled].tolist())
        assert int(alone.sum()) >= kept


# DART


def test_text_before_the_image_is_no_pivot() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.1]]])
    answers: dict[Any, torch.Tensor] = {
        DecoderKeys("visual", "previous"): torch.tensor([[[3.0], [0.0], [0.0], [0.0]]]),
        DecoderKeys("text", "previous"): torch.tensor([[[9.0], [1.0]]]),
        Text(): torch.tensor([[[0.0, -1.0], [1.0, -0.2]]]),
        Behind(): torch.tensor([[False, True]]),
    }
    given_tokens = VisualTokens.of(features, (2, 2), signals=answers)
    # The image's pivot is token 0, which takes 3; the word behind the image takes 2, the one before it would take 2 too
    # if it were asked, so ask with its back turned.
    assert DART(keep=3, pivots=1, text_pivots=1).plan(given_tokens).slot.tolist() == [[0, 2, 3]]
    turned = VisualTokens.of(features, (2, 2), signals=answers | {Behind(): torch.tensor([[True, True]])})
    answers[Text()][0, 0] = torch.tensor([-1.0, 0.0])
    assert DART(keep=3, pivots=1, text_pivots=1).plan(turned).slot.tolist() == [[0, 1, 3]]


@quick
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 6), st.data())
def test_pivots_meet_the_budget(count: int, pivots: int, words: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, count))
    given_tokens = tokens((1, count))
    plan = DART(keep=Keep.of(kept), pivots=pivots, text_pivots=words).plan(given_tokens)
    assert plan.slot.shape == (3, kept)
    assert (plan.slot.diff(dim=1) > 0).all()
    norm = given_tokens.signals[DecoderKeys("visual", "previous")].abs().sum(dim=2)
    for image in range(3):
        own = norm[image].argsort(descending=True, stable=True)[: min(pivots, kept)]
        assert set(own.tolist()) <= set(plan.slot[image].tolist())


def test_pivots_are_told_apart_from_nothing() -> None:
    with pytest.raises(FoveateError, match="at least one visual pivot"):
        DART(pivots=0)


# ATP


def slowly(given_tokens: VisualTokens, image: int, theta_r: float, theta_s: float) -> list[int]:
    """The rule, token by token."""
    logits = given_tokens.signals[DecoderLogits("previous")][image]
    attention = given_tokens.signals[DecoderAttention("text", "previous")][image].mean(dim=0)
    segment = given_tokens.layout.segments[0]
    kept = []
    for token in range(segment.count):
        row, column = divmod(token, segment.w)
        steps = [s for s in (4, 3, 2) if row % s == s // 2 and column % s == s // 2]
        spatial = 1 - 3 / steps[0] ** 2 if steps else 0
        scores = [(x[token] - x.min()) / (x.max() - x.min()) for x in (logits, attention)]
        if sum(scores) / 2 > theta_r or spatial > theta_s:
            kept.append(token)
    return kept


@pytest.mark.parametrize(("theta_r", "theta_s"), [(0.5, 0.5), (0.7, 0.3), (0.2, 1.0), (0.9, 0.2), (0.99, 0.7)])
def test_atp_is_its_equations(theta_r: float, theta_s: float) -> None:
    given_tokens = tokens((8, 9))
    method = ATPMethod(theta_r=theta_r, theta_s=theta_s)
    plan = method.plan(given_tokens)
    valid = torch.ones_like(plan.slot, dtype=torch.bool) if plan.valid is None else plan.valid
    counts = []
    for image in range(3):
        expected = slowly(given_tokens, image, theta_r, theta_s)
        assert plan.slot[image][valid[image]].tolist() == expected
        counts.append(len(expected))
    fewest, most = method.bounds(given_tokens.layout)
    assert fewest <= min(counts) <= max(counts) <= most
    shuffled = method.plan(tokens((8, 9), order=[2, 0, 1]))
    assert torch.equal(shuffled.slot, plan.slot[[2, 0, 1]])


def test_images_differ_in_their_counts() -> None:
    plan = ATPMethod(theta_s=1.0).plan(tokens((8, 9)))
    assert plan.valid is not None
    assert plan.valid.sum(dim=1).unique().numel() > 1


def test_a_token_stays_whatever_the_thresholds() -> None:
    for kind in ("random", "equal", "ties"):
        plan = ATPMethod(theta_r=1.0, theta_s=1.0).plan(tokens((8, 9), kind))
        assert plan.slot.shape == (3, 1)
    assert ATPMethod(theta_r=1.0, theta_s=1.0).plan(tokens((8, 9), "equal")).slot.tolist() == [[20]] * 3, (
        "on the sparsest grid"
    )


@quick
@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_higher_thresholds_keep_less(one: float, other: float, spatial: bool) -> None:
    low, high = sorted((one, other))
    name = "theta_s" if spatial else "theta_r"

    def kept(theta: float) -> list[set[int]]:
        options: dict[str, float] = {"theta_r": 1.0, "theta_s": 1.0, name: theta}
        plan = ATPMethod(**options).plan(tokens((8, 9)))
        return [set(slots.tolist()) for slots in plan.slot]

    # One token may be there for want of any that passes.
    assert all(fewer <= more or len(fewer) == 1 for fewer, more in zip(kept(high), kept(low)))


def test_where_a_token_stood_decides_its_spatial_score() -> None:
    """Behind an earlier step: the grid is the whole image's."""
    given_tokens = tokens((8, 8))
    method = ATPMethod(theta_r=1.0, theta_s=0.7)
    whole = method.plan(given_tokens).slot[0].tolist()
    assert whole == [8 * row + column for row in (2, 6) for column in (2, 6)]
    left = torch.tensor([[1, 18, 22, 30, 54, 60]]).expand(3, -1)

    def at(values: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, left.view(3, *(1,) * (values.ndim - 2), -1).expand(*values.shape[:-1], -1))

    answers = {each: at(given_tokens.signals[each]) for each in method.needs}
    features = given_tokens.features.gather(1, left[..., None].expand(-1, -1, 8))
    strip = one_row(6)
    later = VisualTokens(features, strip, Signals(answers), Origin(given_tokens.layout, left))
    assert left[0][method.plan(later).slot[0]].tolist() == [18, 22, 54]


def test_a_keep_of_its_own() -> None:
    given_tokens = tokens((8, 9))
    method = ATPMethod(keep=Keep.of(10))
    assert not method.ragged
    assert method.bounds(given_tokens.layout) == (10, 10)
    plan = method.plan(given_tokens)
    assert plan.slot.shape == (3, 10)
    assert plan.valid is None
    more = ATPMethod(keep=Keep.of(20)).plan(given_tokens)
    assert all(set(few.tolist()) < set(many.tolist()) for few, many in zip(plan.slot, more.slot))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("atp:theta_r=1.5@4", "from 0 to 1"),
        ("atp:theta_s=-1@4", "from 0 to 1"),
        ("atp:sparsity=-1@4", "0 or more"),
        ("fastv:auto@2", "told how much to keep"),
        ("dart:0.5:pivots=0@2", "at least one visual pivot"),
        ("sparsevlm-plus:0.5:heads=0@3", "at least 1 head"),
        ("sparsevlm:0.5:recycle=on@3", "within or beside or none"),
        ("fastv:0.5:rows=all@2", "last or text"),
    ],
)
def test_options_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse(text)


# SparseVLM, counted by rank


@pytest.mark.parametrize("recycle", ["none", "within", "beside"])
def test_the_rank_tells_how_many_remain(recycle: Any) -> None:
    given_tokens = tokens((10, 10))
    # The second image's raters all look alike, and the third one's nowhere.
    attention = given_tokens.signals[DecoderAttention("text", "previous")].clone()
    attention[1, 1:] = attention[1, 1] * torch.arange(1, 5)[:, None]
    attention[2] = 0
    answers = {each: given_tokens.signals[each] for each in SparseVLMRank().needs}
    answers |= {DecoderAttention("text", "previous"): attention, Behind(): torch.arange(5).ge(1).expand(3, -1)}
    # Every word behind the image rates it: they are all the same.
    answers[DecoderInput("text")] = torch.ones(3, 5, 8)
    given_tokens = VisualTokens.of(given_tokens.features, (10, 10), signals=answers)
    method = SparseVLMRank(scale=7.5, recycle=recycle)
    plan = method.plan(given_tokens)
    assert plan.group is not None
    assert plan.valid is not None
    for image, expected in enumerate((30, 7, 1)):
        slots = plan.slot[image][plan.valid[image]]
        told = SparseVLM(keep=Keep.of(expected), recycle=recycle)
        assert len(slots) == told.count(given_tokens.layout)
        alone = told.plan(given_tokens)
        assert torch.equal(slots, alone.slot[image])
        torch.testing.assert_close(
            plan.apply(given_tokens.features)[image][plan.valid[image]], alone.apply(given_tokens.features)[image]
        )
        fewest, most = method.bounds(given_tokens.layout)
        assert fewest <= len(slots) <= most


def test_a_rank_is_at_most_all_there_is() -> None:
    given_tokens = tokens((2, 3))
    plan = SparseVLMRank().plan(given_tokens)
    assert plan.slot.tolist() == [list(range(6))] * 3
    assert plan.valid is None
    assert torch.equal(plan.apply(given_tokens.features), given_tokens.features)
    told = SparseVLMRank(keep=Keep.of(3))
    assert not told.ragged
    assert torch.equal(
        told.plan(given_tokens).slot, SparseVLM(keep=Keep.of(3), recycle="beside").plan(given_tokens).slot
    )
    with pytest.raises(FoveateError, match="above 0"):
        SparseVLMRank(scale=0.0)


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(
        ImportError, match=r"foveate\.methods\.ATP was renamed; use foveate\.methods\.ATPMethod instead"
    ):
        from foveate.methods import ATP  # noqa: F401
