"""The reference model's recipe is checked: unknown keys and impossible values are errors of one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from recipes.reference.recipe import parse_reference

from foveate.train.settings import RecipeError, read_mapping

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parents[2] / "recipes" / "reference.yaml"


def test_its_command_prints_the_stages_and_refuses_other_recipes():
    def call(*arguments):
        command = [sys.executable, "-m", "recipes.reference.train", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    done = call("recipes/reference.yaml", "--dry-run")
    assert (done.returncode, "windows of 12 x 12 patches" in done.stdout) == (0, True)
    done = call("recipes/144-tokens.yaml")
    assert (done.returncode, "train by it with `foveate train" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr
    done = call("recipes/reference.yaml", "--steps", "3")
    assert done.returncode == 2


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
