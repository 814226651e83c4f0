"""Agreement with the authors' own code, of rules for clips (tests/golden/README.md)."""

import pytest
import torch
from test_golden import named
from test_golden_features import tensors
from torch import Tensor

from foveate.methods import EVS
from foveate.tokens import VisualTokens


def test_every_case_is_there() -> None:
    counts = {name: len(named(name)) for name in ("evs",)}
    assert counts == {"evs": 4}


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
