"""The benchmarks of learned budgets and of what binds VoCo tokens: their settings are what they say, and they run."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("atp_budgets", monkeypatch)


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("voco_binding", monkeypatch)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return importlib.import_module(name)


def test_fixed_numbers_have_the_mean_of_the_budget(budgets: ModuleType) -> None:
    assert [budget.mean for budget in sorted(budgets.BUDGETS, key=lambda each: -each.mean)] == [230, 144, 86, 58]
    for budget in budgets.BUDGETS:
        at_once = [budget.entering] * 2 + [budget.kept] * 10
        falling = [int(number) for number in budget.falling.split("/")]
        by_steps = [budget.entering] * 2 + [falling[0]] * 2 + [falling[1]] * 4 + [falling[2]] * 4
        for layers in (at_once, by_steps):
            assert len(layers) == budgets.LAYERS
            assert sum(layers) / len(layers) == pytest.approx(budget.mean, abs=1)


def test_runs_differ_from_the_one_beside_them_in_what_they_say(binding: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(steps=200, batch=12, runs=tmp_path)
    recipes: dict[str, Any] = {
        trial.name: binding.recipe_of(trial, arguments).to_dict() for trial in binding.TRIALS if trial.after is None
    }
    base = recipes[binding.BASE]
    for trial in binding.TRIALS:
        if trial.name not in recipes or trial.name == binding.BASE:
            continue
        own = recipes[trial.name]
        changed = {key for key in base if own[key] != base[key]}
        assert changed, trial.name
        expected = {*trial.change} | ({"steps"} if trial.steps != 1 else set())
        # Without LoRA weights there is no rank either.
        assert changed - {"lora"} == expected - {"lora"}, trial.name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked for by peft
def test_they_run(
    budgets: ModuleType, binding: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_full: bool
) -> None:
    if not in_full:
        pytest.skip("it trains six models; `nox -s full` runs it")
    out = tmp_path / "budgets.json"
    words = ["--steps", "1", "--questions", "4", "--calibrate", "4", "--means", "58", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["atp_budgets.py", *words, "--work", str(tmp_path / "budgets")])
    assert budgets.main() == 0
    (found,) = json.loads(out.read_text())["budgets"]
    assert len(found["learned"]["seeds"]) == 2
    assert {row["what"] for row in found["rows"]} >= {"tome:58", "stride:144+fastv:41@2"}
    out = tmp_path / "binding.json"
    words = ["--steps", "1", "--batch", "2", "--questions", "8", "--only", "base", "full", "on", "on-rank-128"]
    words += ["--runs", str(tmp_path / "binding"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["voco_binding.py", *words])
    assert binding.main() == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() == {"base", "full", "on", "on-rank-128", "shipped"}
    assert rows["full"]["tokens"]["1"]["difference"] is not None
