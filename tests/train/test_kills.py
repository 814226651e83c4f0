"""A training run that is killed at random moments and resumed ends in the same weights, bit for bit."""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import recipe, write_tiny

from foveate.train.objectives import parse_recipe
from foveate.train.run import run


def train(folder: Path, given: dict[str, Any]) -> None:
    run(parse_recipe(given), folder, resume=True, say=lambda _: None, flops=False)


@pytest.mark.slow
def test_kills_at_random_moments_end_in_the_same_weights(tmp_path: Path, in_full: bool) -> None:
    wanted = 20 if in_full else 6
    given = recipe(write_tiny(tmp_path / "tiny"), steps=40, save_every=1)
    began = time.monotonic()
    train(tmp_path / "whole", given)
    seconds = time.monotonic() - began
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    chance, kills, finished = random.Random(0), 0, 0
    while kills < wanted:
        child = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path / f"run {finished}", given))
        child.start()
        child.join(chance.uniform(0, seconds / 3))
        child.kill()
        child.join()
        assert child.exitcode in (0, -9)
        kills += child.exitcode == -9
        finished += child.exitcode == 0
    train(tmp_path / f"run {finished}", given)
    for number in range(finished + 1):
        folder = tmp_path / f"run {number}"
        found = load_file(folder / "model" / "model.safetensors")
        assert found.keys() == whole.keys()
        assert all(found[name].equal(whole[name]) for name in whole)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-39", "checkpoint-40", "model", "run.json"]
