"""A benchmark that is killed at random moments and run again ends in the same answers and tables."""

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from foveate.bench import Benchmark, configurations

SPECS = configurations(["random", "cluster", "resize"], "9,4")


def run(model: Any, processor: Any, task: Any, out: Path) -> None:
    Benchmark(model, processor, task, SPECS, out, longest=3, batch=2).run()


def outcome(folder: Path) -> tuple[bytes, Any, Any]:
    """The answers, the figures without times, and the configuration."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for row in metrics["configurations"]:
        del row["time_ms"], row["time_ratio"]
    return (folder / "predictions.jsonl").read_bytes(), metrics, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_end_in_the_same_tables(model, processor, task, tmp_path: Path, kills: int) -> None:
    began = time.monotonic()
    run(model, processor, task, tmp_path / "whole")
    seconds = time.monotonic() - began
    chance, done, finished = random.Random(kills), 0, 0
    while done < kills:
        folder = tmp_path / f"run {finished}"
        child = multiprocessing.get_context("fork").Process(target=run, args=(model, processor, task, folder))
        child.start()
        child.join(chance.uniform(0, seconds / 3))
        child.kill()
        child.join()
        done += child.exitcode == -9
        if child.exitcode == 0:
            assert outcome(folder) == outcome(tmp_path / "whole")
            finished += 1
        else:
            assert child.exitcode == -9
    run(model, processor, task, tmp_path / f"run {finished}")
    for folder in tmp_path.glob("run *"):
        assert not folder.name.endswith(".partial")
        assert outcome(folder) == outcome(tmp_path / "whole")
