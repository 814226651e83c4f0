"""The page about training is true: its recipe can be read, its tables name every key and every schedule."""

import importlib.metadata
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import recipe

from foveate.train.objectives import GROUP, names, parse_recipe
from foveate.train.recipe import Data, Recipe
from foveate.train.run import FREE, run
from foveate.train.sources import read_conversation
from foveate.train.timetable import published

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_its_recipe_is_one() -> None:
    found = parse_recipe(yaml.safe_load(block("yaml")))
    assert [stage.spec for stage in found.stages] == [s.spec for s in published("last-stage-compression", 12)]


def test_every_key_is_in_the_table() -> None:
    named = {word for line in re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE) for word in re.findall(r"`(\w+)", line)}
    assert {*Recipe.model_fields, *names()} <= named
    assert {*Data.model_fields} <= {*re.findall(r"`(\w+)[:`]", PAGE)}
    assert all(f"`{name}`" in PAGE for name in FREE)


def test_its_rows_are_one_conversation() -> None:
    rows = [read_conversation(json.loads(line), "line", Path()) for line in block("json").splitlines()]
    assert rows[0] == rows[1] == rows[2]


def test_its_schedules_are_the_ones_that_ship() -> None:
    for name, stages in re.findall(r"^\| `([a-z-]+)` \| (.*(?:dense|@16`)) \|$", PAGE, re.MULTILINE):
        assert [each.strip().strip("`") for each in stages.split(",")] == [s.spec for s in published(name, 32)]


def test_its_commands_name_files_that_are_there() -> None:
    for path in re.findall(r"recipes/[\w/-]+\.yaml", PAGE):
        assert (ROOT / path).exists(), path


def test_its_objective_trains(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {"__name__": "zloss"}
    exec(compile(block("python"), "docs/training.md", "exec"), made)
    entry = importlib.metadata.EntryPoint("zloss", "zloss:ZLoss", GROUP)
    assert f'{entry.name} = "my_package:ZLoss"' in block("toml")
    monkeypatch.setitem(sys.modules, "zloss", types.SimpleNamespace(**made))
    found = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **given: importlib.metadata.EntryPoints([entry]) if given.get("group") == GROUP else found(**given),
    )
    logs: list[list[dict[str, float]]] = []
    for per_device in (4, 1):
        given = recipe(tiny_model, zloss={"weight": 0.1}, steps=2, per_device=per_device)
        out = tmp_path / str(per_device)
        assert run(parse_recipe(given), out, say=lambda _: None) == out / "model"
        history = json.loads((out / "run.json").read_text())["history"]
        logs.append([each for each in history if "loss" in each])
    together, apart = logs
    assert all(each["z"] > 0 for each in together)
    # Each term of the loss is one of the step, however its conversations are accumulated.
    assert [each["loss"] for each in together] == pytest.approx([each["loss"] for each in apart], abs=1e-5)
