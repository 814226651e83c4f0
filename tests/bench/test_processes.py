"""Two processes make the table that one makes, also after both were killed."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from foveate.bench import Benchmark, configurations
from foveate.bench.processes import Place, chunks_of, this_place
from foveate.errors import FoveateError

SPECS = configurations(["random", "resize"], "4")


def work(model: Any, processor: Any, task: Any, out: Path, place: Place) -> None:
    """What the command does in one process."""
    whole = Benchmark(model, processor, task, SPECS, out, longest=2, batch=2)
    share = whole.share(place)
    if share is not None:
        share.run()
    if place.rank == 0:
        whole.gather(place.world)


def started(*given: Any, world: int = 2) -> list[Any]:
    fork = multiprocessing.get_context("fork")
    made = [fork.Process(target=work, args=(*given, Place(rank, world))) for rank in range(world)]
    for each in made:
        each.start()
    return made


def outcome(folder: Path) -> tuple[bytes, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    for row in metrics["configurations"]:
        del row["time_ms"], row["time_ratio"]
    return (folder / "predictions.jsonl").read_bytes(), metrics


def test_two_processes_make_the_table_of_one(model, processor, task, tmp_path: Path) -> None:
    Benchmark(model, processor, task, SPECS, tmp_path / "one", longest=2, batch=2).run()
    # Killed once, with something on the disk; then to the end.
    for each in (killed := started(model, processor, task, tmp_path / "two")):
        each.join(0)
    while not list(tmp_path.glob("two.share-*.partial/parts.jsonl")):
        time.sleep(0.01)
    for each in killed:
        each.kill()
        each.join()
    for each in started(model, processor, task, tmp_path / "two"):
        each.join()
        assert each.exitcode == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two"]


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [number for rank in range(3) for number in chunks_of(Place(rank, 3), 8)]
    assert sorted(every) == list(range(8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert this_place() == Place(1, 2)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(FoveateError, match="RANK=2, WORLD_SIZE=2"):
        this_place()
