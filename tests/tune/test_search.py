"""A search from end to end: a tiny random model, and answers that are really asked for."""

import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import foveate.tune.search as module
from foveate.bench import Benchmark
from foveate.errors import FoveateError
from foveate.files import LOCK, FolderInUse, FolderLock
from foveate.tune import Search, read_result
from foveate.tune.search import check_search_folder

SPECS = ["cluster:9", "cluster:4", "stride:4", "pool:9", "pool:4", "random:1", "pool:4@1", "cls:4"]


class Stopped(Exception):
    """As if the machine had gone."""


def search(model: Any, processor: Any, task: Any, out: Path, **others: Any) -> Search:
    """Nothing is faster for so small a model, so candidates are named."""
    given: dict[str, Any] = {
        "device": "laptop",
        "methods": "none",
        "specs": SPECS,
        "finalists": 2,
        "longest": 3,
        "batch": 4,
        **others,
    }
    return Search(model, processor, task, 0.2, out, **given)


def without_times(folder: Path) -> Any:
    found = json.loads((folder / "tune.json").read_text())
    for row in found["rows"]:
        del row["seconds"]["measured"], row["ratios"]["measured"]
    return found


def answers(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/predictions.jsonl"))}


@pytest.fixture(scope="module")
def whole(model, processor, task, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("searches") / "whole"
    search(model, processor, task, out).run()
    return out


def test_what_is_written(whole: Path, task) -> None:
    found = json.loads((whole / "tune.json").read_text())
    assert found["search"] == {"images": 10, "questions": 10}
    assert found["held_out"] == {"images": 10, "questions": 10}
    assert [len(each["candidates"]) for each in found["rounds"]] == [8, 4]
    assert [each["images"] for each in found["rounds"]] == [5, 10]
    rows = {row["spec"]: row for row in found["rows"]}
    finalists = {row["spec"] for row in found["rounds"][-1]["candidates"] if row["stays"]}
    assert finalists == {name for name, row in rows.items() if row["finalist"]}
    assert len(finalists) == 2
    assert found["chosen"]["spec"] in finalists
    assert rows["dense"]["judgement"] == "within"
    keep = found["chosen"]["spec"].split(":")[1].split("@")[0]
    assert {"random", "stride", "pool2d", "resize"} <= {name.partition(":")[0] for name in rows}
    if "@" not in found["chosen"]["spec"]:
        assert f"random:{keep}" in rows
    others = {name for name, row in rows.items() if row["baseline"] and name != found["chosen"]["spec"]}
    assert set(rows[found["chosen"]["spec"]]["against"]) <= others
    assert len(rows[found["chosen"]["spec"]]["against"]) >= 3
    assert found["front"]
    text = (whole / "table.md").read_text()
    assert all(f"| {name} " in text.replace(" °", "") for name in rows)


def test_held_out_images_were_never_searched(whole: Path, task) -> None:
    def seen(*folders: str) -> set[str]:
        lines = [line for name in folders for line in (whole / name / "predictions.jsonl").read_text().splitlines()]
        return {json.loads(line)["image"] for line in lines}

    searched, judged = seen("round-1", "round-2"), seen("held-out")
    assert not searched & judged
    assert searched | judged == {picture.name for picture in task.pictures}
    assert not seen("round-1") & seen("round-2")


def test_the_held_out_folder_is_a_benchmark(whole: Path) -> None:
    from foveate.bench.comparing import compare, read_results

    found = compare(read_results([whole / "held-out"]))
    assert found["questions"] == 10


@pytest.mark.parametrize(("stop_in", "after"), [("round 1", 2), ("round 2", 0), ("held-out", 3)])
def test_an_interruption_in_any_round_ends_in_the_same_table(
    model, processor, task, whole: Path, tmp_path: Path, stop_in: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def tell(what: str, done: int, whole: int) -> None:
        nonlocal asked
        asked += what.startswith(stop_in)
        if asked > after:
            raise Stopped

    out = tmp_path / "run"
    with pytest.raises(Stopped):
        search(model, processor, task, out).run(tell)
    assert not (out / "tune.json").exists()
    search(model, processor, task, out).run()
    assert without_times(out) == without_times(whole)
    assert answers(out) == answers(whole)
    # Again: nothing is asked.
    monkeypatch.setattr(Benchmark, "_part", None)
    search(model, processor, task, out).run()
    assert without_times(out) == without_times(whole)


def test_a_kill_before_the_first_file_leaves_a_folder_to_go_on_in(tmp_path: Path) -> None:
    for name in (LOCK, ".search.json-0123abcd.partial"):
        (tmp_path / name).write_text("")
    assert check_search_folder(tmp_path) == tmp_path
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FoveateError, match="holds something that is no search"):
        check_search_folder(tmp_path)


def killed(model: Any, processor: Any, task: Any, out: Path) -> None:
    search(model, processor, task, out).run()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_end_in_the_same_table(model, processor, task, whole: Path, tmp_path: Path, kills: int) -> None:
    began = time.monotonic()
    killed(model, processor, task, tmp_path / "timed")
    seconds = time.monotonic() - began
    chance = random.Random(kills)
    out = tmp_path / "run"
    for _ in range(kills):
        child = multiprocessing.get_context("fork").Process(target=killed, args=(model, processor, task, out))
        child.start()
        child.join(chance.uniform(0, seconds / 2))
        child.kill()
        child.join()
    killed(model, processor, task, out)
    assert without_times(out) == without_times(whole)
    assert answers(out) == answers(whole)


def test_measured_times_decide_where_the_model_is(model, processor, task, tmp_path: Path) -> None:
    found = search(model, processor, task, tmp_path / "here", device=None, specs=["cluster:4", "pool:4"]).run()
    assert found["measured"]
    for row in found["rows"]:
        assert row["time_ratio"] == row["ratios"]["measured"]
    assert len(found["rounds"]) == 1
    assert "Measured times decide: float32 on cpu" in (tmp_path / "here" / "table.md").read_text()


def test_baselines_of_a_step_inside_the_decoder_have_its_mean_over_layers(
    model, processor, task, tmp_path: Path
) -> None:
    found = search(model, processor, task, tmp_path / "inside", specs=["pool:4@1"]).run()
    (row,) = (row for row in found["rows"] if row["spec"] == "pool:4@1")
    assert row["tokens"]["mean_over_layers"] == 10
    assert set(row["against"]) == {"random:0.625", "stride:0.625", "pool2d:0.625", "resize:0.625"}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"seed": 1}, "holds another search \\(different data, seed\\)|different .*seed"),
        ({"specs": SPECS[:3]}, "holds another search \\(different candidates, rounds\\)"),
        ({"longest": 4}, "holds another search \\(different longest\\)"),
    ],
)
def test_another_search_is_refused(model, processor, task, whole: Path, others: dict[str, Any], said: str) -> None:
    with pytest.raises(FoveateError, match=said):
        search(model, processor, task, whole, **others)


def test_damaged_files_are_named(model, processor, task, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "tune.json").write_text('{"chosen": 1}')
    with pytest.raises(FoveateError, match=r"tune.json is damaged; give the command that began the search again"):
        read_result(tmp_path / "run")
    (tmp_path / "run" / "tune.json").unlink()
    with pytest.raises(FoveateError, match="isn't finished"):
        read_result(tmp_path / "run")
    (tmp_path / "run" / "search.json").write_text("{")
    with pytest.raises(FoveateError, match=r"search.json .*remove its folder, or name another one with --out"):
        search(model, processor, task, tmp_path / "run")
    assert read_result(tmp_path) is None


def test_what_is_no_search_is_refused(model, processor, task, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FoveateError, match="holds something that is no search"):
        search(model, processor, task, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(FoveateError, match="it is a file"):
        module.check_search_folder(tmp_path / "file")


def test_two_at_once_are_refused(model, processor, task, tmp_path: Path) -> None:
    made = search(model, processor, task, tmp_path / "run")
    with FolderLock(tmp_path / "run"), pytest.raises(FolderInUse, match="in use by process"):
        made.run()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"specs": ["cluster:17"]}, "nothing is left to search: 1 keep more tokens than an image has \\(cluster:17"),
        ({"specs": ["cluster:4@7"]}, "nothing is left to search: 1 can't act on this model"),
        ({"methods": "cluster", "specs": []}, "nothing is left to search: 3 are predicted to take as long as dense"),
        ({"finalists": 0}, "finalists must be a whole number"),
        ({"held_out": 0.05}, "of which 1 would be held out, and 3 are needed"),
        ({"device": "h1000"}, 'no device is called "h1000"'),
    ],
)
def test_what_cant_be_searched(model, processor, task, tmp_path: Path, others: dict[str, Any], said: str) -> None:
    with pytest.raises(FoveateError, match=said):
        search(model, processor, task, tmp_path / "run", **others)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bound", [0, 1, -0.01, 5, float("nan"), "much", True])
def test_a_bound_that_is_no_share(model, processor, task, bound: Any) -> None:
    with pytest.raises(FoveateError, match="max_drop"):
        Search(model, processor, task, bound)
