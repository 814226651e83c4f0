"""Methods for clips inside every family that takes clips, and a budget per frame."""

from typing import Any

import pytest
import torch
from rows import ROWS, Row
from test_contract import CHAT, logits
from versions import CACHE, cache_of_output

from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.methods import method_class, method_names
from foveate.schedule import tokens_between

TAKES_CLIPS = [row.with_clips() for row in ROWS if row.clips]
TEMPORAL = [name for name in method_names() if method_class(name).temporal]
SPECS = [f"{name}:0.8" for name in TEMPORAL] + ["prunevid:auto", "fastvid:0.8:remainder=drop", "evs:0.5+cluster:0.5",
         "pool3d:0.25", "stride3d:0.25", "cluster:3:per=frame", "cls:0.5:per=frame+random:2:per=frame",
         "evs:0.5@1", "random:0.5:per=frame@1"]  # fmt: skip


@pytest.fixture(params=TAKES_CLIPS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_clips_of_a_model(row: Row, model: Any, spec: str) -> None:
    """The count is what the layout tells, fewer tokens arrive, and both ways to compress agree."""
    family = family_of(model)
    if "decoder" not in family.clip_places and "@" in spec:
        return
    inputs = row.inputs(CHAT)
    with apply(model, spec) as run:
        found = logits(model, inputs)
    assert found.isfinite().all()
    (clip,) = run.report().images
    fewest, most = tokens_between(spec, family, row.layout("A"))
    assert fewest <= clip.layers[-1] <= most
    assert clip.layers[-1] < clip.before or spec == "prunevid:auto"
    if "@" not in spec:
        short = compress(model, inputs, spec)
        torch.testing.assert_close(logits(model, short)[:, -1], found[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TEMPORAL)
@torch.no_grad()
def test_a_picture_is_refused(row: Row, model: Any, name: str) -> None:
    """C is a picture: nothing runs, and the text tells what to do."""
    with (
        pytest.raises(FoveateError, match=f"{name} works on the frames of a clip.*use it on clips of 2 frames or more"),
        apply(model, f"{name}:0.5"),
    ):
        logits(model, row.inputs("t3 C t4"))


@pytest.mark.parametrize("spec", ["evs:0.5", "evs:0.5+cluster:3", "dycoke:0.5", "evs:0.5@1"])
@torch.no_grad()
def test_a_picture_beside_a_clip_keeps_its_tokens(row: Row, model: Any, spec: str) -> None:
    """Up to the first step that works on pictures; and the clip is what it is alone."""
    family = family_of(model)
    if "decoder" not in family.clip_places and "@" in spec:
        return
    alone, beside = row.inputs("t3 A t2"), row.inputs("t3 C t4 A t2")
    with apply(model, spec) as run:
        logits(model, alone)
        found = logits(model, beside)
    assert found.isfinite().all()
    clip, picture, same = run.report().images
    fewest, most = tokens_between("cluster:3" if "cluster" in spec else "stride", family, row.layout("C"))
    assert fewest <= picture.layers[-1] <= most
    assert same.layers == clip.layers
    assert clip.layers[-1] < clip.before
    if "@" not in spec:
        assert torch.equal(run.plans[0].kept(0), run.plans[2].kept(0))
        short = compress(model, beside, spec)
        torch.testing.assert_close(logits(model, short)[:, -1], found[:, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_picture_in_a_turn_after_a_clip_keeps_its_tokens(row: Row, model: Any) -> None:
    if not family_of(model).blocks_after_cache:
        return
    with apply(model, "evs:0.5") as run:
        cache = cache_of_output(model(**row.inputs(CHAT), use_cache=True))
        logits(model, row.pixels("C") | {"input_ids": torch.tensor([row.ids("t2 C t3")]), CACHE: cache})
    *_, picture = run.report().images
    assert picture.layers[-1] == picture.before
