"""Recipes of staged runs: every key is checked, and every line that people can put right says how."""

from pathlib import Path

import pytest
from tiny import recipe
from versions import CHECKPOINTING

from foveate.errors import FoveateError
from foveate.train.objectives import parse_recipe
from foveate.train.prepared import prepare
from foveate.train.settings import RecipeError, read_mapping
from foveate.train.trainer import training_arguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": 3}, 'the recipe has no key "stepps"; did you mean "steps"?'),
        ({"data": {"scenes": 3, "turn": 1}}, 'data has no key "turn"; did you mean "turns"?'),
        ({"data": {}}, "one of scenes, clips, jsonl, llava and dataset, not none of them"),
        ({"data": {"scenes": 3, "jsonl": "a"}}, "not scenes and jsonl"),
        ({"data": {"scenes": "many"}}, "data: scenes is a whole number or nothing, not 'many'"),
        ({"stages": [{"spec": "pool:0.5"}]}, 'stages, number 1 lacks "share"'),
        ({"stages": [{"share": 1, "spec": "poool:0.5"}]}, 'did you mean "pool"?'),
        ({"stages": [{"share": "1/3"}, {"share": "1/3"}]}, r"1/3 + 1/3 = 2/3, not 1"),
        ({"stages": [{"share": 0.333}] * 3}, "= 999/1000, not 1; thirds are written 1/3"),
        ({"stages": [{"share": 0}, {"share": 1}]}, "above 0"),
        ({"stages": [{"share": "1/0"}]}, "like 1/3 or 0.25"),
        ({"stages": []}, "stages is empty"),
        ({"stages": 3}, "the name of a published schedule"),
        ({"train": "everything"}, "train is one of full, projector, lora"),
        ({"steps": None}, "either steps or epochs"),
        ({"epochs": 1}, "either steps or epochs"),
        ({"steps": True}, "steps is a whole number or nothing, not True"),
        ({"batch": 0}, "batch is a whole number from 1"),
        ({"lr": "fast"}, "lr is a number, not 'fast'"),
        ({"lr": -1.0}, "lr is more than 0"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"lora": {"rank": 0}}, "lora: rank is a whole number from 1"),
        ({"train_encoder": True, "train": "lora"}, "train_encoder goes with train: full"),
        ({"data": {"scenes": 1, "features": "pool2d:9:positions=pack@features"}, "train_encoder": True}, "frozen one"),
        ({"trackers": "wandb"}, "trackers is a list"),
        ({"precision": "int8"}, "fp32, bf16, fp16"),
    ],
)
def test_bad_recipes(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(Path("model"), **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": "last-stage"}, 'did you mean "last-stage-compression"?'),
        ({"stages": [{"share": 1, "spec": "pool:0.25@9"}]}, "stage 1:"),
        ({"stages": [{"share": "1/100"}, {"share": "99/100"}]}, "has no step: 1/100 of 6 steps"),
        ({"model": "nowhere"}, "no model directory nowhere"),
        ({"data": {"jsonl": "nowhere.jsonl"}}, "no file nowhere.jsonl"),
        ({"data": {"dataset": "/nowhere/at/all"}}, "must be the name of a dataset"),
    ],
)
def test_what_only_the_model_and_the_data_tell(tiny_model: Path, changes: dict, message: str) -> None:
    with pytest.raises(FoveateError) as caught:
        prepare(parse_recipe(recipe(tiny_model, **changes)))
    assert message in str(caught.value)


def test_a_schedule_that_ends_elsewhere_is_warned_of(tiny_model: Path) -> None:
    stages = [{"share": 1, "spec": "pool:0.25"}]
    (warning,) = prepare(parse_recipe(recipe(tiny_model, stages=stages))).warnings
    assert "tested under dense" in warning
    assert "arXiv 2406.20092, Table 9" in warning
    for test in ("pool:0.25", "last"):
        ready = prepare(parse_recipe(recipe(tiny_model, stages=stages, test=test)))
        assert not ready.warnings
        assert ready.used_under == "pool:0.25"


def test_numbers_as_people_write_them() -> None:
    parsed = parse_recipe(recipe(Path("model"), lr="1e-3", clip=1))
    assert (parsed.lr, parsed.clip) == (1e-3, 1.0)
    assert parse_recipe(recipe(Path("model"), stages=[{"share": 0.1}, {"share": 0.9}])).steps == 6


def test_what_is_passed_on_to_the_trainer_is_checked(tmp_path: Path) -> None:
    given = {CHECKPOINTING: True}
    assert getattr(training_arguments(tmp_path, given, {"max_steps": 3}), CHECKPOINTING)
    with pytest.raises(RecipeError, match="trainer has no key"):
        training_arguments(tmp_path, {"bf61": True}, {})
    with pytest.raises(RecipeError, match="shards: true in the recipe"):
        training_arguments(tmp_path, {"fsdp": True}, {})
    with pytest.raises(RecipeError, match="decided by other keys"):
        training_arguments(tmp_path, {"learning_rate": 1.0}, {"learning_rate": 1e-3})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_can_be_read(path: Path) -> None:
    given = read_mapping(path)
    if "builds" not in given:
        parse_recipe(given)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- 1", "is a mapping, not list"), (None, "there is no recipe")]
)
def test_broken_files_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_mapping(path)
    assert "\n" not in str(caught.value)
