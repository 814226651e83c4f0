"""Agreement with the authors' own code, of rules for clips (tests/golden/README.md)."""

from typing import Any

import pytest
import torch
from test_golden import CASES, named
from test_golden_features import tensors
from torch import Tensor

from foveate.methods import EVS, DyCoke, FastVID, PruneVid
from foveate.methods.arithmetic.frames import longest_runs, runs
from foveate.tokens import VisualTokens


def test_every_case_is_there() -> None:
    cases = {"evs": 4, "dycoke_ttm": 4, "fastvid": 3, "prunevid_refine": 2, "prunevid_merge": 2}
    assert {name: len(named(name)) for name in cases} == cases


def shape(arrays: dict[str, Tensor], merge: int = 1) -> tuple[int, int, int]:
    t, h, w = arrays["grid"].tolist()
    return t, h // merge, w // merge


@pytest.mark.parametrize("file", named("evs"))
def test_evs(file: str) -> None:
    """The kept tokens, their number from the shape alone, and their positions."""
    parameters, arrays = tensors(file)
    features, grid = arrays["features"], shape(arrays, parameters["spatial_merge_size"])
    given = VisualTokens.of(features, grid)
    method = EVS(keep=int(features.shape[1] * (1 - parameters["q"])))
    assert method.count(given.layout) == int(arrays["retained"])
    plan = method.plan(given)
    assert torch.equal(plan.slot, arrays["index"])
    assert torch.equal(plan.apply(features), arrays["features_out"])
    mask = torch.zeros_like(arrays["mask"]).scatter(1, plan.slot, value=True)
    assert torch.equal(mask, arrays["mask"])
    t, h, w = (each.flatten()[plan.slot[0]] for each in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    seconds = parameters["tokens_per_second"] * parameters["video_second_per_grid"]
    positions = torch.stack([(t * seconds).long(), h, w, torch.full_like(w, grid[2])], dim=1)
    assert torch.equal(positions, arrays["positions"])


@pytest.mark.parametrize("file", named("dycoke_ttm"))
def test_dycoke(file: str) -> None:
    """The kept set; theirs has the tokens of a pruned frame in order of rising cosine."""
    parameters, arrays = tensors(file)
    features, index = arrays["features"], arrays["index"]
    given = VisualTokens.of(features, shape(arrays))
    method = DyCoke(keep=index.shape[1], rest="drop")
    assert method._of_each(given.layout) == parameters["kept_per_pruned_frame"]
    plan = method.plan(given)
    slot, order = index.sort(dim=1)
    assert torch.equal(plan.slot, slot)
    assert torch.equal(plan.apply(features), arrays["features_out"].gather(1, order[..., None].expand(-1, -1, 32)))


@pytest.mark.parametrize("file", named("dycoke_ttm"))
def test_dycoke_without_its_authors_accidents(file: str) -> None:
    """With as many tokens of each pruned frame, only frames that theirs loses or forgets to prune differ."""
    parameters, arrays = tensors(file)
    t, h, w = shape(arrays)
    given, kept = VisualTokens.of(arrays["features"], (t, h, w)), parameters["kept_per_pruned_frame"]
    whole = -(-t // 4)
    plan = DyCoke(keep=whole * h * w + (t - whole) * kept).plan(given)
    ours, theirs = (set(slots.flatten().tolist()) for slots in (plan.slot, arrays["index"]))
    differing = {slot // (h * w) for slot in ours ^ theirs}
    lost = {t - 1} if t % 2 else set()
    unpruned = {t - 2} if t % 4 == 0 else set()
    assert differing == lost | unpruned
    assert lost == ({t - 1} if any("lost" in quirk for quirk in CASES[file]["quirks_reproduced"]) else set())
    assert bool(unpruned) == any("only once" in quirk for quirk in CASES[file]["quirks_reproduced"])


def options_of(parameters: dict[str, Any]) -> dict[str, Any]:
    """FastVID's options under our names."""
    names = {"segments": "DySeg_c", "tau": "DySeg_tau", "context": "STPrune_d", "step": "DTM_p", "beta": "DTM_beta"}
    return {name: parameters[own] for name, own in names.items()}


@pytest.mark.parametrize("file", named("fastvid"))
def test_fastvid(file: str) -> None:
    """Cut by their features of frames: segments, kept tokens and merged features are theirs."""
    parameters, arrays = tensors(file)
    features, (t, h, w) = arrays["features"], shape(arrays)
    given = VisualTokens.of(features, (t, h, w), encoder_attention=arrays["frame_attention"].flatten()[None])
    budget = t * int(h * w * parameters["retention_ratio"])
    method = FastVID(keep=budget, remainder="drop", **options_of(parameters))
    frames = arrays["frame_global_features"][None]
    ends = method._cuts(frames)[0].nonzero().flatten() + 1
    sizes = torch.cat([ends, torch.tensor([t])]).diff(prepend=torch.tensor([0]))
    assert torch.equal(sizes, arrays["segment_sizes"])
    plan = method.plan_by(given, frames)
    assert torch.equal(plan.slot, arrays["index"])
    torch.testing.assert_close(plan.apply(features), arrays["features_out"], atol=1e-4, rtol=0)
    fewest, most = method.bounds(given.layout)
    assert fewest <= plan.slot.shape[1] <= most <= budget
    places = torch.cat([torch.arange(parameters["text_before"]), plan.slot[0] + parameters["text_before"]])
    after = parameters["text_before"] + t * h * w + torch.arange(parameters["text_after"])
    assert torch.equal(torch.cat([places, after]), arrays["keep_indexs"])


@pytest.mark.parametrize("file", named("fastvid"))
def test_fastvid_fills_its_budget(file: str) -> None:
    """What the divisions leave over goes to the most attended of all others; the rest of the kept set is theirs."""
    parameters, arrays = tensors(file)
    t, h, w = shape(arrays)
    attention = arrays["frame_attention"].flatten()[None]
    given = VisualTokens.of(arrays["features"], (t, h, w), encoder_attention=attention)
    kept = t * int(h * w * parameters["retention_ratio"])
    method = FastVID(keep=kept, **options_of(parameters))
    slot = method.plan_by(given, arrays["frame_global_features"][None]).slot[0]
    assert len(slot) == kept
    theirs = torch.isin(torch.arange(t * h * w), arrays["index"][0])
    extra = attention[0].masked_fill(theirs, -1).topk(kept - int(theirs.sum())).indices
    assert set(slot.tolist()) == {*arrays["index"][0].tolist(), *extra.tolist()}


@pytest.mark.parametrize("file", named("prunevid_refine"))
def test_prunevids_runs(file: str) -> None:
    _, arrays = tensors(file)
    for labels, refined, lengths in zip(arrays["cluster_index"], arrays["refined"], arrays["segment_lengths"]):
        ours = longest_runs(labels.tolist())
        assert ours == refined.tolist()
        assert [end - begin for begin, end in runs(ours)] == lengths[lengths > 0].tolist()


@pytest.mark.parametrize("file", named("prunevid_merge"))
def test_prunevid(file: str) -> None:
    """Segments, sizes and merged features. Theirs has the static tokens of a segment first, then clusters by score."""
    parameters, arrays = tensors(file)
    features, (t, h, w) = arrays["features"], shape(arrays)
    method = PruneVid(
        tau=parameters["tau"],
        ratio=parameters["cluster_ratio"],
        segments=parameters["temporal_segment_ratio"],
        neighbours=parameters["k"],
    )
    given = VisualTokens.of(features, (t, h, w))
    frames = features.view(t, h * w, -1)
    spans = method.spans(frames)
    assert [end - begin for begin, end in spans] == arrays["window_sizes"].tolist()
    plan = method.plan(given)
    out, theirs = plan.apply(features)[0], arrays["features_out"][0]
    slot, _ = method._groups(frames, None)
    assert torch.equal(slot.sort(dim=1).values, plan.slot)
    # Our groups are in their order before they are sorted by slot.
    torch.testing.assert_close(out[torch.searchsorted(plan.slot[0], slot[0])], theirs, atol=1e-4, rtol=0)
    frame = plan.slot[0] // (h * w)
    for (begin, end), still, moving in zip(spans, arrays["static_sizes"].tolist(), arrays["dynamic_sizes"].tolist()):
        inside = (frame >= begin) & (frame < end)
        assert int(inside.sum()) == still + moving
        assert int(plan.size()[0][inside].sum()) == (end - begin) * h * w
