"""Every method on clips: one grid of several frames. And the methods that act on clips alone."""

from typing import Any

import pytest
import torch
from given import alone, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from variants import keeps_its_budget, spec_of, variants

from foveate.errors import FoveateError, KeepError, SpecError
from foveate.families import Family, Llava
from foveate.methods import Method, method_class, method_names
from foveate.methods.arithmetic.grids import fit, fit_clip
from foveate.methods.prunevid import shared
from foveate.methods.tiles import parts_of, plan_of
from foveate.plan import Plan
from foveate.schedule import ExpectedTokens, schedule
from foveate.spec import parse
from foveate.tokens import Layout, Origin, Segment, Signals, VisualTokens

quick = settings(deadline=None, max_examples=60)
CLIPS = [(2, 3, 4), (3, 5, 3), (4, 1, 7), (5, 3, 1), (8, 4, 4)]
SPECS = [spec_of(variant) for variant in variants(clips=True)]
ALONE = [spec_of(variant) for variant in variants(clips=True) if method_class(variant[0]).temporal]
PER_FRAME = [spec_of(variant) for variant in variants()]
TEMPORAL = [name for name in method_names() if method_class(name).temporal]
AT_LEAST_A_FRAME = {"evs"}
"""Methods that keep a whole frame, whatever they are told."""


def clip(t: int, h: int, w: int) -> Layout:
    return Layout((Segment(t, h, w),))


def method_of(text: str) -> Any:
    return parse(text).steps[0].method


def fewest(spec: str, layout: Layout) -> int:
    """The least number that a method takes of this clip, which its error tells; 1 if it takes any."""
    try:
        method_of(spec.format(k=1)).count(layout)
    except KeepError as error:
        *_, least = (int(word) for word in str(error).replace(";", " ").replace(",", " ").split() if word.isdigit())
        return least
    return 1


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", CLIPS)
def test_a_plan_of_a_clip_is_what_it_says(spec: str, shape: tuple[int, int, int], in_full: bool) -> None:
    layout = clip(*shape)
    given_tokens = tokens(layout)
    content, frame = layout.content, shape[1] * shape[2]
    if "rest=drop" in spec and shape[0] <= 4:
        with pytest.raises(FoveateError, match="needs 5 frames or more"):
            method_of(spec.format(k=0.5)).count(layout)
        return
    least = fewest(spec, layout)
    for keep in {least, "0.5", "1.0"} | ({min(content, least + 2), "0.8"} if in_full else set()):
        method = method_of(spec.format(k=keep))
        try:
            count = method.count(layout)
        except KeepError:
            assert method.keep.count(content) < least
            continue
        if keeps_its_budget(method):
            budget = method.keep.count(content)
            assert count <= (max(budget, frame) if method.name in AT_LEAST_A_FRAME else budget)
            assert count == content or keep != "1.0"
        check(method, given_tokens, count)
        order = [2, 0, 1]
        plan = method.plan(given_tokens)
        shuffled = method.plan(tokens(layout, order=order))
        assert same(shuffled, plan.rows(torch.tensor(order)))
        assert same(method.plan(tokens(layout, order=[1])), plan.rows(torch.tensor([1])))


def check(method: Method, given_tokens: VisualTokens, count: int) -> None:
    """A plan that keeps `count` tokens of each clip, the same each time, and does what its matrix says."""
    plan = plan_of(method, given_tokens)
    images, content = given_tokens.features.shape[:2]
    if method.ragged:
        fewest_kept, most_kept = method.bounds(given_tokens.layout)
        valid = torch.ones_like(plan.slot, dtype=torch.bool) if plan.valid is None else plan.valid
        for number in range(images):
            one = plan.image(number, int(valid[number].sum()))
            assert fewest_kept <= one.slot.shape[1] <= most_kept == count
            check_one(one, given_tokens, number)
        assert same(plan_of(method, given_tokens), plan)
        return
    assert plan.valid is None
    assert plan.slot.shape == (images, count)
    assert plan.slot.dtype == torch.int64
    assert (plan.slot.diff(dim=1) > 0).all()
    assert 0 <= int(plan.slot.min()) <= int(plan.slot.max()) < content
    out = plan.apply(given_tokens.features)
    assert out.dtype == given_tokens.features.dtype
    assert out.isfinite().all()
    if plan.group is not None:
        assert torch.equal(plan.group.gather(1, plan.slot), torch.arange(count).expand(images, -1))
    assert (plan.size() > 0).all()
    if given_tokens.features.dtype == torch.float32:
        torch.testing.assert_close(plan.matrix(content) @ given_tokens.features, out)
    assert same(plan_of(method, given_tokens), plan)


def check_one(plan: Plan, given_tokens: VisualTokens, number: int) -> None:
    """The plan of one clip of a batch in which counts differ."""
    assert (plan.slot.diff(dim=1) > 0).all()
    assert (plan.size() > 0).all()
    out = plan.apply(given_tokens.features[[number]])
    assert out.isfinite().all()
    if given_tokens.features.dtype == torch.float32:
        torch.testing.assert_close(plan.matrix(given_tokens.layout.content) @ given_tokens.features[[number]], out)


def same(one: Plan, other: Plan) -> bool:
    def equal(mine: Tensor | None, theirs: Tensor | None) -> bool:
        if mine is None or theirs is None:
            return mine is theirs
        return torch.equal(mine, theirs) if mine.dtype == torch.int64 else torch.allclose(mine, theirs, atol=1e-6)

    names = ("slot", "group", "weight", "mix", "valid")
    return all(equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["ties", "loud"])
def test_half_precision_and_ties(spec: str, dtype: torch.dtype, kind: str) -> None:
    given_tokens = tokens(clip(6, 3, 3), kind, dtype=dtype)
    method = method_of(spec.format(k=0.75))
    check(method, given_tokens, method.count(given_tokens.layout))


@pytest.mark.parametrize("kind", ["random", "equal"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if ":iterations=0" not in spec])
def test_keeping_all_is_the_identity(spec: str, kind: str) -> None:
    given_tokens = tokens(clip(4, 2, 3), kind)
    plan = method_of(spec.format(k="1.0")).plan(given_tokens)
    assert plan.slot.tolist() == [list(range(24))] * 3
    assert torch.equal(plan.apply(given_tokens.features), given_tokens.features)


@quick
@given(st.data())
def test_a_method_for_images_after_one_for_clips(data: st.DataObject) -> None:
    """The plan of both, over all tokens, does what the two do one after the other."""
    shape = data.draw(st.tuples(st.integers(2, 8), st.integers(1, 4), st.integers(1, 4)))
    first = method_of(data.draw(st.sampled_from(ALONE)).format(k="0.75"))
    layout = clip(*shape)
    try:
        count = first.count(layout)
    except FoveateError:
        return
    second = method_of(data.draw(st.sampled_from(["cluster", "random", "pool", "cls", "stride"])) + ":0.5")
    given_tokens = tokens(layout)
    one = first.plan(given_tokens)
    middle = one.apply(given_tokens.features)
    between = tokens((1, count))
    two = second.plan(VisualTokens(middle, between.layout, between.signals))
    both = one.compose(two, layout.content)
    torch.testing.assert_close(both.apply(given_tokens.features), two.apply(middle), rtol=1e-4, atol=1e-5)
    assert torch.equal(both.slot, one.slot.gather(1, two.slot))


@pytest.mark.parametrize("name", TEMPORAL)
def test_images_are_refused(name: str) -> None:
    method = method_of(f"{name}:0.5")
    words = f"{name} works on the frames of a clip, and was given one frame of 3 x 5 tokens; use it on clips of 2"
    for wrong in (method.count, method.bounds, lambda layout: method.plan(tokens(layout))):
        with pytest.raises(FoveateError, match=words):
            wrong(clip(1, 3, 5))
    with pytest.raises(FoveateError, match=f"{name} works on the frames of a clip, and was given 2 grids"):
        method.count(Layout((Segment(1, 2, 2), Segment(2, 2, 2))))
    with pytest.raises(FoveateError, match=f"{name} works on the frames of a clip, and after the first step inside"):
        method.in_encoder(64, 4)


@pytest.mark.parametrize("name", TEMPORAL)
def test_what_a_schedule_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family without clips; and a step before that leaves tokens out."""
    monkeypatch.setattr(Llava, "clip_places", ())
    family = family_of_a_released_model()
    with pytest.raises(FoveateError, match=f"{name} works on the frames of a clip, and LLaVA is not given clips yet"):
        schedule(f"{name}:0.5", family)
    monkeypatch.setattr(Llava, "clip_places", ("input",))
    assert [each.name for each in schedule(f"{name}:0.5+cluster:0.5", family).inputs] == [name, "cluster"]
    for spec in (f"cluster:0.5+{name}:0.5", f"{name}:0.5@2,8"):
        with pytest.raises(FoveateError, match=f"works on whole frames of a clip.*write {name} first, at one place"):
            schedule(spec, family)


def family_of_a_released_model() -> Family:
    from foveate.costmodel.model_config import load_config

    return Llava.of_config(load_config("llava-1.5-7b"))


# EVS


def test_evs_keeps_what_changed() -> None:
    """Three tokens change in frame 2, one in frame 3, none elsewhere."""
    frames = torch.eye(8)[torch.arange(4)].repeat(4, 1, 1)
    frames[2, :3] = torch.eye(8)[4:7]
    frames[3] = frames[2]
    frames[3, 3] = torch.eye(8)[7]
    given_tokens = VisualTokens.of(frames.reshape(1, 16, 8), (4, 2, 2))
    assert method_of("evs:8").plan(given_tokens).slot.tolist() == [[0, 1, 2, 3, 8, 9, 10, 15]]
    # Of equal scores the first stays.
    assert method_of("evs:9").plan(given_tokens).slot.tolist() == [[0, 1, 2, 3, 4, 8, 9, 10, 15]]
    assert method_of("evs:1").plan(given_tokens).slot.tolist() == [[0, 1, 2, 3]]
    assert method_of("evs:0.01").count(given_tokens.layout) == 4


# DyCoke


@pytest.mark.parametrize("t", range(2, 14))
def test_dycokes_frames(t: int) -> None:
    """Whole frames are 0, 4, 8, ...; every other keeps what is least like an earlier frame."""
    given_tokens = tokens(clip(t, 3, 3), images=1)
    whole = list(range(0, t, 4))
    kept = 9 * len(whole) + 4 * (t - len(whole)) + (t - len(whole) - 1)
    plan = method_of(f"dycoke:{kept}").plan(given_tokens)
    frames = given_tokens.features[0].view(t, 9, 8)
    for number in range(t):
        own = plan.slot[0][plan.slot[0] // 9 == number] % 9
        if number in whole:
            assert own.tolist() == list(range(9))
            continue
        other = number - 2 if number % 4 == 2 else number - 1
        cosine = torch.cosine_similarity(frames[number], frames[other], dim=1)
        assert set(own.tolist()) == set(cosine.argsort()[:4].tolist())
    least = 9 * len(whole) + t - len(whole)
    assert method_of(f"dycoke:{least}").count(given_tokens.layout) == least
    with pytest.raises(KeepError, match=f"keep at least {least}"):
        method_of(f"dycoke:{least - 1}").count(given_tokens.layout)


# PruneVid


@pytest.mark.parametrize("options", ["", ":tau=0.0", ":tau=-1.0:segments=0.5", ":ratio=0.1", ":tau=1.0"])
@pytest.mark.parametrize("shape", [*CLIPS, (9, 5, 5), (16, 4, 4)])
@pytest.mark.parametrize("kind", ["random", "ties", "equal"])
def test_prunevid_that_decides(options: str, shape: tuple[int, int, int], kind: str) -> None:
    """What stays is within its bounds; every token flows somewhere, and a clip of a batch is itself alone."""
    layout = clip(*shape)
    method = method_of(f"prunevid:auto{options}")
    given_tokens = tokens(layout, kind)
    fewest_kept, most_kept = method.bounds(layout)
    assert 1 <= fewest_kept <= most_kept <= layout.content
    plan = method.plan(given_tokens)
    assert plan.group is not None
    assert (plan.group >= 0).all()
    counts = [plan.slot.shape[1]] * 3 if plan.valid is None else plan.valid.sum(dim=1).tolist()
    for number, count in enumerate(counts):
        assert fewest_kept <= count <= most_kept
        one = plan.image(number, count)
        check_one(one, given_tokens, number)
        assert same(one, method.plan(tokens(layout, kind, order=[number])))
        assert torch.equal(one.group.gather(1, one.slot), torch.arange(count)[None])
    assert plan.apply(given_tokens.features).isfinite().all()


def test_prunevid_averages_what_stands_still() -> None:
    """Two scenes of four frames; in each, one place of nine moves."""
    scenes = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    frames = scenes.repeat_interleave(4, dim=0)
    frames[:, 4] = torch.eye(16)[torch.arange(8)] * 3
    given_tokens = VisualTokens.of(frames.view(1, 72, 16), (8, 3, 3))
    plan = method_of("prunevid:auto").plan(given_tokens)
    # Of each scene, 8 places once, and the one that moves four times.
    assert sorted(plan.size()[0].tolist()) == [1] * 8 + [4] * 16
    still = [place + first for first in (0, 36) for place in range(9) if place != 4]
    assert plan.slot[0].tolist() == sorted([*range(4, 72, 9), *still])
    torch.testing.assert_close(plan.apply(given_tokens.features), given_tokens.features[0, plan.slot[0]][None])
    # More than is left after averaging: places are static no longer.
    assert method_of("prunevid:40").plan(given_tokens).slot.shape == (1, 40)
    with pytest.raises(KeepError, match="keep at least 12"):
        method_of("prunevid:11").count(given_tokens.layout)


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_budgets_of_groups(sizes: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(len(sizes), sum(sizes)))
    parts = shared(kept, sizes)
    assert sum(parts) == kept
    assert all(1 <= part <= size for part, size in zip(parts, sizes))


# Baselines


def test_frames_are_evenly_spaced() -> None:
    given_tokens = tokens(clip(8, 2, 3))
    for keep, kept in ((6, [3]), (13, [1, 5]), (24, [0, 2, 4, 6]), (47, [0, 2, 3, 4, 5, 6, 7]), (48, list(range(8)))):
        frames = method_of(f"frames:{keep}").plan(given_tokens).slot[0].view(-1, 6)
        assert (frames // 6 == frames[:, :1] // 6).all()
        assert (frames[:, 0] // 6).tolist() == kept
    with pytest.raises(KeepError, match=r"keep 0.1 is 5 of 48 tokens, and frames keeps whole frames; keep at least 6"):
        method_of("frames:0.1").count(given_tokens.layout)


@quick
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.data())
def test_grids_in_time_and_space(t: int, h: int, w: int, data: st.DataObject) -> None:
    """About the clip's proportions, never more than the budget, and most of it if the clip isn't a line."""
    budget = data.draw(st.integers(1, t * h * w))
    grid = fit_clip(t, h, w, budget)
    assert all(1 <= side <= most for side, most in zip(grid, (t, h, w)))
    count = grid[0] * grid[1] * grid[2]
    assert count <= budget
    assert fit_clip(t, h, w, t * h * w) == (t, h, w)
    assert count >= budget / 8
    if t == 1:
        assert grid == (1, *fit(h, w, budget))


@pytest.mark.parametrize("keep", [1, 7, 0.3, 0.5])
@pytest.mark.parametrize(("flat", "deep"), [("pool2d", "pool3d"), ("stride", "stride3d")])
def test_an_image_is_a_grid_of_one_frame(flat: str, deep: str, keep: float) -> None:
    for layout in (clip(1, 6, 8), Layout((Segment(1, 3, 3), Segment(1, 6, 6)))):
        given_tokens = tokens(layout)
        plans = [method_of(f"{name}:{keep}").plan(given_tokens) for name in (flat, deep)]
        assert same(*plans)


def test_a_grid_of_each_frame_needs_a_token_of_each() -> None:
    for name in ("pool2d", "stride"):
        assert method_of(f"{name}:8").count(clip(8, 4, 4)) == 8
        with pytest.raises(KeepError, match=r"clip of 8 frames.*use pool3d or stride3d, or keep at least 8"):
            method_of(f"{name}:7").count(clip(8, 4, 4))


# A budget per frame


@pytest.mark.parametrize("keep", [5, 0.25])
@pytest.mark.parametrize("spec", [spec for spec in PER_FRAME if keeps_its_budget(method_of(spec.format(k=5)))])
def test_a_budget_for_each_frame_is_each_frame_alone(spec: str, keep: float) -> None:
    layout = clip(3, 3, 4)
    whole = tokens(layout)
    method = method_of(spec.format(k=keep) + ":per=frame")
    plan = plan_of(method, whole)
    out = plan.apply(whole.features)
    counts: list[int] = []
    for number, (segment, index) in enumerate(parts_of(layout)):
        assert (segment, index.tolist()) == (Segment(1, 3, 4), list(range(12 * number, 12 * number + 12)))
        one = method.plan(alone(whole, segment, index))
        mine = plan.slot // 12 == number
        assert torch.equal(plan.slot[mine].view(3, -1), index[one.slot])
        torch.testing.assert_close(out[mine].view(3, -1, 8), one.apply(whole.features[:, index]))
        counts.append(one.slot.shape[1])
    assert plan.slot.shape == (3, sum(counts))
    left = ExpectedTokens.of(layout).after(method)
    assert left.layout.content == sum(counts)
    assert left.tiles is not None
    assert [tile.content for tile in left.tiles] == counts


@pytest.mark.parametrize("first", ["cluster:5", "random:0.5", "prumerge:4", "cls:99"])
@pytest.mark.parametrize("second", ["pool:2", "cluster:0.5", "random:99"])
def test_two_steps_per_frame(first: str, second: str) -> None:
    """The second step finds the tokens of each frame where the first one left them."""
    layout = clip(4, 3, 4)
    one, two = (method_of(f"{spec}:per=frame") for spec in (first, second))
    whole = tokens(layout)
    plan = plan_of(one, whole)
    left = ExpectedTokens.of(layout).after(one)
    assert left.tiles is not None
    origin = Origin(layout, plan.slot, tuple(tile.content for tile in left.tiles))
    middle = VisualTokens(plan.apply(whole.features), left.layout, Signals(), origin)
    both = plan.compose(plan_of(two, middle), layout.content)
    counts = [((both.slot[0] // 12) == number).sum().item() for number in range(4)]
    after = left.after(two)
    assert after.tiles is not None
    assert counts == [tile.content for tile in after.tiles]
    assert len(set(counts)) == 1


def test_what_per_frame_means() -> None:
    """An image is one frame, a clip is one tile, and methods that compare frames can't plan each by itself."""
    image, film = tokens((4, 4)), tokens(clip(4, 2, 2))
    tiled = tokens(Layout((Segment(1, 2, 2), Segment(1, 4, 4, rows=(2, 2)))))
    assert plan_of(method_of("cluster:4:per=frame"), image).slot.shape == (3, 4)
    assert plan_of(method_of("cluster:4:per=frame"), tiled).slot.shape == (3, 4)
    assert plan_of(method_of("cluster:3:per=frame"), film).slot.shape == (3, 12)
    assert plan_of(method_of("cluster:3:per=tile"), film).slot.shape == (3, 3)
    for name in TEMPORAL:
        with pytest.raises(SpecError, match=f"{name} works on several frames of a clip.*leave per=frame out"):
            parse(f"{name}:8:per=frame")
    with pytest.raises(FoveateError, match=r"keeps per frame.*write per=frame at the earlier steps too"):
        ExpectedTokens.of(film.layout).after(method_of("cls:9")).after(method_of("random:2:per=frame"))
    with pytest.raises(SpecError, match="with per=frame write one keep per layer"):
        parse("pyramiddrop:mean=64:per=frame@1,2")


def test_a_clip_shrinks_by_frames() -> None:
    assert method_of("resize:4:per=frame").shrink(clip(6, 4, 4)) == (2, 2)
    assert method_of("resize:24").shrink(clip(6, 4, 4)) == (2, 2)
    assert method_of("resize:4:per=frame").shrink(clip(1, 4, 4)) == (2, 2)
    assert method_of("resize:0.25:per=frame").shrink(clip(6, 4, 4)) == (2, 2)
