"""Agreement with the authors' own code, of rules that read the encoder (tests/golden/README.md)."""

import pytest
import torch
from test_golden import named
from test_golden_features import grid, tensors
from torch import Tensor

from foveate.methods import HiRED, HoloV, PruMerge, PruMergePlus, VisionZip, VisPruner
from foveate.methods.prumerge import outliers
from foveate.plan import Plan
from foveate.tokens import EncoderAttention, Layout, Segment, VisualTokens


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def real_slots(plan: Plan, image: int) -> list[int]:
    slot = plan.slot[image]
    return (slot if plan.valid is None else slot[plan.valid[image]]).tolist()


def test_every_case_is_there() -> None:
    counts = {"visionzip": 4, "prumerge": 3, "prumerge_plus": 3, "vispruner": 3, "hired": 3, "hired_llava15": 1}
    assert {name: len(named(name)) for name in counts} == counts
    assert len(named("holov")) == 4


@pytest.mark.parametrize("file", named("visionzip"))
def test_visionzip(file: str) -> None:
    parameters, arrays = tensors(file)
    dominant, contextual = parameters["dominant_num"], parameters["contextual_num"]
    tokens = VisualTokens.of(
        arrays["features"],
        grid(arrays),
        encoder_attention=arrays["attention_heads"].sum(dim=1),
        encoder_keys=arrays["keys"],
    )
    plan = VisionZip(keep=dominant + contextual, contextual=contextual).plan(tokens)
    out = plan.apply(tokens.features)
    # Theirs: [CLS], dominant tokens in raster order, contextual ones.
    theirs, place = (
        arrays["features_out"][:, 1:],
        torch.cat([arrays["index"], arrays["contextual_target_index"]], dim=1),
    )
    assert torch.equal(plan.slot, place.sort(dim=1).values)
    close(out, theirs.gather(1, place.argsort(dim=1)[..., None].expand_as(theirs)))
    assert plan.group is not None
    into = plan.slot.gather(1, plan.group).gather(1, arrays["contextual_source_index"])
    assert torch.equal(into, arrays["contextual_target_index"].gather(1, arrays["contextual_assignment"]))
    assert torch.equal(plan.size().sum(dim=1), torch.full((out.shape[0],), tokens.features.shape[1]))


def test_visionzips_published_proportion() -> None:
    _, arrays = tensors("visionzip-1.npz")
    tokens = VisualTokens.of(
        arrays["features"],
        grid(arrays),
        encoder_attention=arrays["attention_heads"].mean(dim=1),
        encoder_keys=arrays["keys"],
    )
    for keep, contextual in ((64, 10), (128, 20), (192, 30)):
        by_itself, told = VisionZip(keep=keep).plan(tokens), VisionZip(keep=keep, contextual=contextual).plan(tokens)
        assert torch.equal(by_itself.slot, told.slot)
        assert by_itself.group is not None
        assert told.group is not None
        assert torch.equal(by_itself.group, told.group)


def prumerge_tokens(arrays: dict[str, Tensor], images: slice = slice(None)) -> VisualTokens:
    return VisualTokens.of(
        arrays["features"][images],
        grid(arrays),
        encoder_attention=arrays["cls_attention"][images],
        encoder_keys=arrays["keys"][images],
    )


@pytest.mark.parametrize("file", [*named("prumerge"), *named("prumerge_plus")])
def test_prumerges_attention_is_that_of_one_wide_head(file: str) -> None:
    """What `EncoderAttention(heads="full")` stands for."""
    _, arrays = tensors(file)
    keys = torch.cat([arrays["key_cls"][:, None], arrays["keys"]], dim=1)
    scores = torch.einsum("bc,bnc->bn", arrays["query_cls"], keys) * keys.shape[-1] ** -0.5
    torch.testing.assert_close(scores.softmax(dim=-1)[:, 1:], arrays["cls_attention"])


def same_as_theirs(plan: Plan, tokens: VisualTokens, arrays: dict[str, Tensor], image: int) -> None:
    """The kept set and every kept token's features; the extra token last of theirs, wherever it stands in ours."""
    index, theirs = arrays["index"][image], arrays["features_out"][image]
    out = plan.apply(tokens.features)[image]
    slots = real_slots(plan, image)
    extra = set(slots) - set(index.tolist())
    assert set(index.tolist()) <= set(slots)
    assert len(extra) == 1
    assert extra == {max(set(range(tokens.features.shape[1])) - set(index.tolist()))}
    number = {slot: place for place, slot in enumerate(slots)}
    close(out[[number[place] for place in index.tolist()]], theirs[:-1])
    close(out[number[extra.pop()]], theirs[-1])


@pytest.mark.parametrize("file", ["prumerge-1.npz", "prumerge_plus-1.npz", "prumerge_plus-2.npz"])
def test_prumerge_left_to_decide(file: str) -> None:
    _, arrays = tensors(file)
    tokens = prumerge_tokens(arrays)
    method = (PruMergePlus if "plus" in file else PruMerge)()
    assert method.keep.auto
    plan = method.plan(tokens)
    fewest, most = method.bounds(tokens.layout)
    assert fewest <= plan.slot.shape[1] <= most
    same_as_theirs(plan, tokens, arrays, 0)


@pytest.mark.parametrize("file", ["prumerge-2.npz", "prumerge-3.npz"])
def test_prumerge_told_how_many(file: str) -> None:
    _, arrays = tensors(file)
    tokens = prumerge_tokens(arrays)
    kept = arrays["index"].shape[1]
    plan = PruMerge(keep=kept + 1).plan(tokens)
    assert plan.slot.shape[1] == kept + 1
    for image in range(tokens.features.shape[0]):
        same_as_theirs(plan, tokens, arrays, image)
    without = PruMerge(keep=kept, extra=False).plan(tokens)
    assert torch.equal(without.slot, arrays["index"].sort(dim=1).values)


def test_prumerge_at_a_fixed_ratio() -> None:
    parameters, arrays = tensors("prumerge-3.npz")
    tokens = prumerge_tokens(arrays)
    same_as_theirs(PruMerge(ratio=parameters["reduction_ratio"]).plan(tokens), tokens, arrays, 0)


def test_prumerge_counts_each_image_alone() -> None:
    """Theirs takes the share of outliers in both images together."""
    _, arrays = tensors("prumerge-2.npz")
    attention = arrays["cls_attention"]
    together = int(outliers(attention.flatten()[None])[0])
    assert arrays["index"].shape[1] == 576 * together // (2 * 576)
    apart = outliers(attention).tolist()
    assert apart[0] != apart[1]
    plan = PruMerge().plan(prumerge_tokens(arrays))
    assert plan.valid is not None
    for image in (0, 1):
        assert len(real_slots(plan, image)) == apart[image] + 1
        alone = PruMerge().plan(prumerge_tokens(arrays, slice(image, image + 1)))
        assert alone.slot[0].tolist() == real_slots(plan, image)


def test_prumerge_plus_at_a_fixed_ratio() -> None:
    """Theirs has some tokens twice, as neighbours too, and leaves as many others out of everything."""
    parameters, arrays = tensors("prumerge_plus-3.npz")
    tokens = prumerge_tokens(arrays)
    plan = PruMergePlus(ratio=parameters["reduction_ratio"]).plan(tokens)
    out = plan.apply(tokens.features)
    for image in (0, 1):
        index, theirs = arrays["index"][image].tolist(), arrays["features_out"][image]
        dropped = arrays["extra_source_index"][image].tolist()
        slots = real_slots(plan, image)
        (extra,) = set(slots) - set(index)
        assert set(slots) - {extra} == set(index)
        assert len(set(index)) < len(index)
        assert len(set(range(576)) - set(index) - set(dropped)) == len(index) - len(set(index))
        # The rule itself, over the tokens as theirs has them and over each token once.
        mine = out[image][[slots.index(place) for place in [*index, extra]]]
        for listed, rows, result in (
            (index + dropped, list(range(len(index))), theirs),
            (list(range(576)), index, mine),
        ):
            x, attention, keys = (arrays[name][image][listed] for name in ("features", "cls_attention", "keys"))
            alike = torch.nn.functional.normalize(keys, dim=-1)
            alike = alike @ alike.T
            alike.fill_diagonal_(-torch.inf)
            merged = x + torch.stack([attention[near] @ x[near] for near in alike.topk(32, dim=1).indices])
            close(result[:-1], merged[rows])
            rest = [row for row, place in enumerate(listed) if place not in set(index)]
            close(result[-1], attention[rest] @ x[rest])
    # Told how many, the places that theirs wastes go to the next most attended tokens.
    told = PruMergePlus(keep=arrays["index"].shape[1] + 1).plan(tokens)
    assert told.slot.shape[1] == arrays["index"].shape[1] + 1
    for image in (0, 1):
        assert set(arrays["index"][image].tolist()) <= set(told.slot[image].tolist())


@pytest.mark.parametrize("file", named("vispruner"))
def test_vispruner(file: str) -> None:
    parameters, arrays = tensors(file)
    features = arrays["features"]
    tokens = VisualTokens.of(features, grid(arrays), encoder_attention=arrays["attention_heads"].mean(dim=1))
    method = VisPruner(keep=parameters["visual_token_num"], important=parameters["important_ratio"])
    plan = method.plan(tokens)
    assert torch.equal(plan.slot, arrays["index"])
    close(plan.apply(features), arrays["features_out"])


@pytest.mark.parametrize("file", named("holov"))
def test_holov(file: str) -> None:
    parameters, arrays = tensors(file)
    features, attention = arrays["features"], arrays["cls_attention"]
    method = HoloV(keep=parameters["new_image_token_num"], windows=parameters["num_patches"], alpha=parameters["alpha"])
    plan = method.plan(VisualTokens.of(features, grid(arrays), encoder_attention=attention))
    for image, theirs in enumerate(arrays["index"]):
        kept, mine = set(theirs.tolist()) - {-1}, set(plan.slot[image].tolist())
        others = [place for place in attention[image].argsort(descending=True).tolist() if place not in kept]
        assert mine == kept | set(others[: len(mine) - len(kept)])
        assert (len(mine) > len(kept)) == ("zero vectors" in " ".join(quirks(file)))


def quirks(file: str) -> list[str]:
    from test_golden import CASES

    return CASES[file]["quirks_reproduced"]


def hired_tokens(top: Tensor, bottom: Tensor, layout: Layout) -> VisualTokens:
    answers = {EncoderAttention(layer=-2): bottom, EncoderAttention(layer=0): top}
    return VisualTokens.of(torch.zeros(1, layout.content, 1), layout, signals=answers)


@pytest.mark.parametrize("file", named("hired"))
def test_hired(file: str) -> None:
    parameters, arrays = tensors(file)
    side = int(parameters["num_vision_tokens"] ** 0.5)
    tiles = parameters["tiles_per_image"]
    top, bottom, masks = (
        arrays[name].split(tiles) for name in ("top_layer_attention", "bottom_layer_attention", "mask")
    )
    for each_top, each_bottom, mask, count in zip(top, bottom, masks, tiles):
        tokens = hired_tokens(
            each_top.mean(dim=1).flatten()[None],
            each_bottom.mean(dim=1).flatten()[None],
            Layout((Segment(1, side, side),) * count),
        )
        budget = int(count * side * side * parameters["token_budget_rate"])
        theirs = mask.flatten().nonzero().flatten()
        drop = HiRED(keep=budget, alpha=parameters["alpha"], remainder="drop")
        assert drop.plan(tokens).slot[0].tolist() == theirs.tolist()
        fewest, most = drop.bounds(tokens.layout)
        assert fewest <= len(theirs) <= most == budget
        # What their rounding loses goes to the most attended tokens that are left.
        fill = HiRED(keep=budget, alpha=parameters["alpha"]).plan(tokens).slot[0].tolist()
        assert len(fill) == budget
        late = tokens.signals[EncoderAttention(layer=-2)][0]
        others = [place for place in late.argsort(descending=True).tolist() if place not in set(theirs.tolist())]
        assert set(fill) == set(theirs.tolist()) | set(others[: budget - len(theirs)])


def test_hired_counts_where_tiles_lie() -> None:
    """Tiles in a grid get the votes of their own quarter of the image; theirs counts stripes."""
    layout = Layout((Segment(1, 4, 4), Segment(1, 8, 8, rows=(4, 4), columns=(4, 4))))
    top, bottom = torch.zeros(1, 80), torch.rand(1, 80, generator=torch.Generator().manual_seed(0))
    right = [2, 3, 6, 7, 10, 11, 14, 15]
    top[:, right] = 1.0
    mask = torch.zeros(80, dtype=torch.bool)
    mask[HiRED(keep=32).plan(hired_tokens(top, bottom, layout)).slot[0]] = True
    assert int(mask[:16].sum()) == 16
    halves = mask[16:].view(8, 2, 4).sum(dim=(0, 2))
    assert halves.tolist() == [0, 16]
    stripes = Layout((Segment(1, 4, 4),) * 5)
    tiles = bottom[:, 16:].view(1, 2, 4, 2, 4).transpose(2, 3).flatten(1)
    apart = hired_tokens(top, torch.cat([bottom[:, :16], tiles], dim=1), stripes)
    slots = HiRED(keep=32).plan(apart).slot[0]
    assert [int(((slots >= 16 * n) & (slots < 16 * n + 16)).sum()) for n in range(5)] == [16, 4, 4, 4, 4]


@pytest.mark.parametrize("file", named("hired_llava15"))
def test_hired_on_a_single_grid(file: str) -> None:
    parameters, arrays = tensors(file)
    bottom = arrays["bottom_layer_attention"].mean(dim=1)
    kept = int(parameters["num_vision_tokens"] * parameters["token_budget_rate"])
    assert kept == parameters["kept"]
    tokens = VisualTokens.of(torch.zeros(1, 576, 1), (24, 24), encoder_attention=bottom)
    assert torch.equal(HiRED(keep=kept).plan(tokens).slot, arrays["index"])
