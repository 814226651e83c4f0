"""Agreement with the authors' own code, of rules that read features and text (tests/golden/README.md)."""

from typing import Any

import numpy as np
import pytest
import torch
from test_golden import load, named
from torch import Tensor
from torch.nn.functional import normalize

from foveate.methods import CDPruner, DivPrune, DpcKnn, ToMe
from foveate.methods.arithmetic.density import density_peaks
from foveate.methods.cdpruner import from_zero_to_one, likeliest_subset, mean_cosine
from foveate.methods.divprune import farthest_points
from foveate.methods.tome import bipartite
from foveate.plan import Plan
from foveate.tokens import VisualTokens


def tensors(file: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    parameters, arrays = load(file)
    return parameters, {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def grid(arrays: dict[str, Tensor]) -> tuple[int, int, int]:
    t, h, w = arrays["grid"].tolist()
    return t, h, w


def test_every_case_is_there() -> None:
    counts = {name: len(named(name)) for name in ("divprune", "cdpruner", "tome", "prunevid_dpcknn")}
    assert counts == {"divprune": 4, "cdpruner": 4, "tome": 6, "prunevid_dpcknn": 3}


@pytest.mark.parametrize("file", named("divprune"))
def test_divprune(file: str) -> None:
    parameters, arrays = tensors(file)
    features = arrays["features"]
    plan = DivPrune(keep=parameters["k"]).plan(VisualTokens.of(features, grid(arrays)))
    assert torch.equal(plan.slot, arrays["index"])
    assert torch.equal(plan.apply(features), arrays["features_out"])
    unit = normalize(features, dim=-1)
    picks = farthest_points(1 - unit @ unit.transpose(1, 2), parameters["k"])
    assert torch.equal(picks, arrays["selection_order"])


@pytest.mark.parametrize("file", named("cdpruner"))
def test_cdpruner(file: str) -> None:
    """Their relevance is unlikeness, scaled over the whole batch; ours has one scale per image."""
    parameters, arrays = tensors(file)
    features, kept = arrays["features"], parameters["visual_token_num"]
    text = arrays["text_embeds"][None].expand(len(features), -1, -1)
    unlike = -mean_cosine(arrays["image_embeds"], text)
    theirs = from_zero_to_one(unlike.reshape(1, -1)).reshape(unlike.shape)
    torch.testing.assert_close(theirs, arrays["relevance"], atol=1e-6, rtol=0)
    assert torch.equal(likeliest_subset(features, theirs, kept), arrays["selection_order"])
    if len(features) == 1:
        assert torch.equal(from_zero_to_one(unlike), theirs)


def test_an_image_is_scaled_by_itself() -> None:
    """Of a batch, their picks depend on the other images; ours are those of each image alone."""
    parameters, arrays = tensors("cdpruner-3.npz")
    features, kept = arrays["features"], parameters["visual_token_num"]
    unlike = -mean_cosine(arrays["image_embeds"], arrays["text_embeds"][None].expand(len(features), -1, -1))
    ours = likeliest_subset(features, from_zero_to_one(unlike), kept)
    assert not torch.equal(ours, arrays["selection_order"])
    alone = [likeliest_subset(features[i : i + 1], from_zero_to_one(unlike[i : i + 1]), kept) for i in (0, 1)]
    assert torch.equal(ours, torch.cat(alone))


def test_the_method_joins_the_parts_of_cdpruner() -> None:
    """Where image and text share a space with the features, the whole method is the authors' rule."""
    parameters, arrays = tensors(named("cdpruner")[0])
    features, kept = arrays["features"], parameters["visual_token_num"]
    text = torch.randn(1, 3, features.shape[2], generator=torch.Generator().manual_seed(0))
    plans = {
        relevance: CDPruner(keep=kept, relevance=relevance).plan(VisualTokens.of(features, grid(arrays), text=text))
        for relevance in ("like", "unlike")
    }
    cosine = torch.cosine_similarity(features[:, :, None], text[:, None], dim=-1).mean(dim=2)
    for relevance, sign in (("like", 1), ("unlike", -1)):
        scaled = sign * cosine
        scaled = (scaled - scaled.min() + 1e-6) / (scaled.max() - scaled.min())
        unit = normalize(features, dim=-1)
        kernel = (unit @ unit.transpose(1, 2) * scaled[:, None] * scaled[..., None])[0].double()
        picks: list[int] = []
        for _ in range(6):
            gains = torch.full((kernel.shape[0],), -torch.inf, dtype=torch.float64)
            for token in set(range(kernel.shape[0])) - set(picks):
                chosen = torch.tensor([*picks, token])
                gains[token] = torch.logdet(kernel[chosen][:, chosen])
            picks.append(int(gains.argmax()))
        first = likeliest_subset(features, scaled, 6)[0].tolist()
        assert first == picks
        assert set(first) <= set(plans[relevance].slot[0].tolist())
    assert not torch.equal(plans["like"].slot, plans["unlike"].slot)


@pytest.mark.parametrize("file", named("tome"))
def test_tome_rounds(file: str) -> None:
    """Round by round, with protected tokens and tokens that stand for several already."""
    parameters, arrays = tensors(file)
    features, metric = arrays["features"], arrays["keys"]
    protected = parameters["class_token"] + parameters["distill_token"]
    size = arrays["size"][..., 0] if "size" in arrays else features.new_ones(features.shape[:2])
    group = torch.arange(features.shape[1]).expand(len(features), -1)
    for merges in parameters["r"]:
        left = metric.shape[1]
        merges = min(merges, (left - protected) // 2)
        merged = bipartite(metric, merges, protected)
        metric = Plan(merged[:, : left - merges], merged).apply(metric)
        group = merged.gather(1, group)
    kept = metric.shape[1]
    expected = arrays["source_group"]
    if parameters["distill_token"]:
        # Their output begins with [CLS] and the distillation token; ours has the first half, then the second.
        rename = torch.zeros_like(expected).scatter(1, expected, group)
        expected = rename.gather(1, expected)
    assert torch.equal(group, expected)
    total = size.new_zeros(len(features), kept).scatter_add(1, group, size)
    out = Plan(group[:, :kept], group, size / total.gather(1, group)).apply(features)
    order = torch.zeros(len(features), kept, dtype=torch.int64).scatter(1, arrays["source_group"], group)
    torch.testing.assert_close(total.gather(1, order), arrays["size_out"][..., 0])
    index = order[..., None].expand_as(arrays["features_out"])
    torch.testing.assert_close(out.gather(1, index), arrays["features_out"], atol=1e-4, rtol=0)


def test_tome_rounds_differ_without_protection() -> None:
    """What is protected is so by the option, not by luck: without it, [CLS] would be merged in some case."""
    lost = 0
    for file in named("tome"):
        parameters, arrays = tensors(file)
        if parameters["class_token"]:
            protected = bipartite(arrays["keys"], arrays["keys"].shape[1] // 2 - 1, 1)
            assert ((protected == protected[:, :1]).sum(dim=1) == 1).all()
            free = bipartite(arrays["keys"], arrays["keys"].shape[1] // 2, 0)
            lost += int(((free == free[:, :1]).sum(dim=1) > 1).sum())
    assert lost


# Visual tokens begin as one each, and [CLS] isn't among them.
PLAIN = [file for file in named("tome") if not load(file)[0]["class_token"] and "size" not in load(file)[1]]


@pytest.mark.parametrize("file", PLAIN)
def test_tome(file: str) -> None:
    parameters, arrays = tensors(file)
    features, theirs = arrays["features"], arrays["source_group"]
    kept = arrays["features_out"].shape[1]
    method = ToMe(keep=kept, per_round=parameters["r"][0], metric="keys")
    plan = method.plan(VisualTokens.of(features, grid(arrays), encoder_keys=arrays["keys"]))
    assert plan.group is not None
    # The same groups, in raster order of their slots.
    order = theirs.gather(1, plan.slot)
    assert torch.equal(order.gather(1, plan.group), theirs)
    index = order[..., None].expand_as(arrays["features_out"])
    torch.testing.assert_close(plan.apply(features), arrays["features_out"].gather(1, index), atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", named("prunevid_dpcknn"))
def test_dpc_knn(file: str) -> None:
    parameters, arrays = tensors(file)
    features = arrays["features"]
    centre, group = density_peaks(features, parameters["cluster_num"], parameters["k"])
    assert torch.equal(centre, arrays["index"])
    assert torch.equal(group, arrays["cluster_index"])
    method = DpcKnn(keep=parameters["cluster_num"], neighbours=parameters["k"])
    plan = method.plan(VisualTokens.of(features, grid(arrays)))
    slot, order = arrays["index"].sort(dim=1)
    assert torch.equal(plan.slot, slot)
    index = order[..., None].expand_as(arrays["features_out"])
    torch.testing.assert_close(plan.apply(features), arrays["features_out"].gather(1, index), atol=1e-4, rtol=0)
