"""Stages by optimiser step, against what the authors' own counter did, and the published schedules."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from foveate.train.recipe import Stage
from foveate.train.settings import DENSE, RecipeError
from foveate.train.timetable import PUBLISHED, Timetable, ending_warning, published

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["llavolta_schedule-1.npz", "llavolta_schedule-2.npz"])
def test_stages_are_the_authors_with_their_first_one_a_call_shorter(name: str) -> None:
    """Their counter changes after the call that has the pivot's number, counted from 0: one call later than it says."""
    case = np.load(GOLDEN / name)
    strides, layers, pivots = (case[key].tolist() for key in ("strides", "layers", "pivots"))
    calls = len(case["stride_per_forward"])
    edges = [0, *pivots, calls]
    stages = tuple(
        Stage(share=Fraction(end - begin, calls), spec=DENSE if stride == 1 else f"pool:{1 / stride}@{layer}")
        for begin, end, stride, layer in zip(edges, edges[1:], strides, layers)
    )
    table = Timetable.of(stages, calls)
    assert table.starts == tuple(edges[:-1])
    ours = [table.stage(step) for step in range(calls - 1)]
    assert [strides[stage] for stage in ours] == case["stride_per_forward"][1:].tolist()
    assert [layers[stage] for stage in ours] == case["layer_per_forward"][1:].tolist()


def test_published_schedules_are_their_table() -> None:
    """arXiv 2406.20092, Table 1, layers of 32; all but the last end without compression."""
    heavy = "pool:0.125@2"
    assert {name: [stage.spec for stage in published(name, 32)] for name in PUBLISHED} == {
        "single": [DENSE],
        "two-compression": [heavy, DENSE],
        "three-deeper": [heavy, "pool:0.125@16", DENSE],
        "three-wider": [heavy, "pool:0.5@2", DENSE],
        "four-wider-deeper": [heavy, "pool:0.5@2", "pool:0.5@16", DENSE],
        "four-deeper-wider": [heavy, "pool:0.125@16", "pool:0.5@16", DENSE],
        "last-stage-compression": ["pool:0.0625@2", "pool:0.0625@16", "pool:0.25@16"],
    }
    for name in PUBLISHED:
        stages = published(name, 12)
        assert sum(stage.share for stage in stages) == 1
        assert all("@1" in stage.spec or "@6" in stage.spec or stage.spec == DENSE for stage in stages)
        assert (ending_warning(stages, DENSE) is None) == (name != "last-stage-compression")


@pytest.mark.parametrize("steps", [3, 7, 100, 5197])
def test_every_step_has_a_stage_and_lengths_add_up(steps: int) -> None:
    table = Timetable.of(published("three-wider", 32), steps)
    assert [table.stage(step) for step in range(steps)] == sorted(table.stage(step) for step in range(steps))
    assert sum(table.length(stage) for stage in range(3)) == steps
    assert max(table.length(stage) for stage in range(3)) - min(table.length(stage) for stage in range(3)) <= 1
    for stage, start in enumerate(table.starts):
        assert table.stage(start) == stage


def test_a_stage_without_steps_is_an_error() -> None:
    with pytest.raises(RecipeError, match="stage 2"):
        Timetable.of((Stage(share=Fraction(9, 10)), Stage(share=Fraction(1, 10), spec="pool:0.5")), 4)


def test_shipped_schedules_are_the_published_ones() -> None:
    from foveate.train.objectives import parse_recipe
    from foveate.train.settings import read_mapping

    folder = Path(__file__).parents[2] / "recipes" / "llavolta"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(PUBLISHED)
    for path in folder.glob("*.yaml"):
        recipe = parse_recipe(read_mapping(path))
        assert recipe.stages == path.stem
        assert recipe.test == ("last" if path.stem == "last-stage-compression" else DENSE)


def test_the_golden_cases_tell_where_they_are_from() -> None:
    cases = json.loads((GOLDEN / "index.json").read_text())["cases"]
    found = [case for case in cases if case["method"] == "llavolta_schedule"]
    assert len(found) == 2
    assert all(case["source_licence"] == "Apache-2.0" for case in found)
