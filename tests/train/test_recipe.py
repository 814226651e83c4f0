"""Recipes are checked: unknown keys and impossible values are errors of one line."""

from pathlib import Path

import pytest

from foveate.train.stages import RecipeError, parse_recipe, read_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "reference.yaml"


def test_the_recipe_of_the_shipped_model_is_valid():
    recipe = read_recipe(RECIPE)
    assert recipe.stages[0].objective == "encoder"
    assert recipe.stages[-1].patches == 576
    assert recipe.stages[-1].layers == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "mapping"),
        ({}, "no list of stages"),
        ({"stages": [], "epochs": 3}, "unknown key 'epochs'"),
        ({"stages": [{"name": "a", "objective": "encoder", "steps": 1, "stesp": 2}]}, "unknown key 'stesp'"),
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
        parse_recipe(given)


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stages: [")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
