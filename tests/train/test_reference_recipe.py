"""The reference model's recipe is checked: unknown keys and impossible values are errors of one line."""

from pathlib import Path

import pytest

from foveate.train.recipe import RecipeError, read_mapping
from foveate.train.reference_recipe import parse_reference

RECIPE = Path(__file__).parents[2] / "recipes" / "reference.yaml"


def test_the_recipe_of_the_shipped_model_is_valid():
    given = read_mapping(RECIPE)
    assert given.pop("builds") == "reference"
    recipe = parse_reference(given)
    assert recipe.stages[0].objective == "encoder"
    assert recipe.stages[-1].patches == 576
    assert recipe.stages[-1].layers == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "mapping"),
        ({}, 'lacks "stages"'),
        ({"stages": [], "epochs": 3}, 'no key "epochs"'),
        ({"stages": [{"name": "a", "objective": "encoder", "steps": 1, "stesp": 2}]}, 'did you mean "steps"'),
        ({"stages": [{"name": "a", "objective": "encoder"}]}, "steps"),
        ({"stages": [{"name": "a", "objective": "sleep", "steps": 1}]}, "encoder, answers"),
        ({"stages": [{"name": "a", "objective": "answers", "steps": 0}]}, "from 1"),
        ({"stages": [{"name": "a", "objective": "answers", "steps": 1, "batch": 3, "per_scene": 2}]}, "divide"),
        ({"stages": [{"name": "a", "objective": "answers", "steps": 1, "kinds": {"maps": 1.0}}]}, "maps"),
        ({"stages": [{"name": "a", "objective": "encoder", "steps": 1}] * 2}, "same name"),
    ],
)
def test_bad_recipes(given, message):
    with pytest.raises(RecipeError, match=message):
        parse_reference(given)
