import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foveate.bench import Benchmark, configurations
from foveate.errors import FoveateError, KeepError, SpecError
from foveate.families import family_of
from foveate.fingerprint import model_fingerprint
from foveate.methods import ATPMethod
from foveate.methods.arithmetic.thresholds import LearnedThresholds

SPECS = configurations(["random", "cluster", "resize"], "9,4")


class Stopped(Exception):
    """As if the machine had gone."""


def run(model: Any, processor: Any, task: Any, out: Path, stop_at: int | None = None) -> Benchmark:
    made = Benchmark(model, processor, task, SPECS, out, longest=3)

    def tell(what: str, done: int, whole: int) -> None:
        if done == stop_at:
            raise Stopped

    made.run(tell)
    return made


@pytest.fixture(scope="module")
def whole(model, processor, task, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "whole"
    run(model, processor, task, out)
    return out


def without_times(path: Path) -> Any:
    metrics = json.loads((path / "metrics.json").read_text())
    for row in metrics["configurations"]:
        del row["time_ms"], row["time_ratio"]
    return metrics


def test_what_is_written(whole: Path, task) -> None:
    names = {each.name for each in whole.iterdir()}
    assert names >= {"config.json", "predictions.jsonl", "metrics.json", "environment.json", "table.md"}
    assert not whole.with_name("whole.partial").exists()
    lines = (whole / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(SPECS) * task.questions
    metrics = json.loads((whole / "metrics.json").read_text())
    rows = {row["spec"]: row for row in metrics["configurations"]}
    assert next(iter(rows)) == "dense"
    assert rows["dense"]["loyalty"] == 1.0
    assert rows["dense"]["tokens"]["after"] == 16
    assert [row["budget"] for row in metrics["configurations"]][1:] == [9, 9, 9, 4, 4, 4]
    assert rows["cluster:4"]["tokens"]["after"] == 4
    assert all(row["time_ms"]["total"] > 0 for row in rows.values())
    assert metrics["floor"]["overall"] == pytest.approx(0.25)


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(model, processor, task, whole, tmp_path, stop_at) -> None:
    out = tmp_path / "broken"
    with pytest.raises(Stopped):
        run(model, processor, task, out, stop_at)
    assert not out.exists()
    partial = tmp_path / "broken.partial"
    # Killed in the middle of a line, with a part's answers written and the part not closed.
    with (partial / "predictions.jsonl").open("a") as file:
        file.write((whole / "predictions.jsonl").read_text().splitlines()[0][:-1] + ', "chunk": 1}\n{"spec": "den')
    with (partial / "parts.jsonl").open("a") as file:
        file.write('{"spec": "cluster:4", "chu')
    again = run(model, processor, task, out)
    assert again.done == stop_at
    assert (out / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()
    assert without_times(out) == without_times(whole)
    parts = again.folder.parts()
    assert {part.session for part in parts} == {1, 2}
    # Chunks of 8 and 4 images. The first is complete only if seven configurations were done when the run stopped.
    images = 8 if stop_at > len(SPECS) else 4
    rows = json.loads((out / "metrics.json").read_text())["configurations"]
    assert [row["time_ms"]["images"] for row in rows] == [images] * len(SPECS)
    assert f"times are from {images} of 12 images" in (out / "table.md").read_text()


def test_a_run_without_a_complete_chunk_is_timed_again(model, processor, task, whole, tmp_path) -> None:
    """Both chunks are interrupted: no times of one session belong together."""
    out = tmp_path / "broken"
    for stop_at in (3, 9):
        with pytest.raises(Stopped):
            run(model, processor, task, out, stop_at)
    again = run(model, processor, task, out)
    assert (out / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()
    assert without_times(out) == without_times(whole)
    assert {part.session for part in again.folder.parts() if part.chunk == 0} == {3}
    assert "times are from 8 of 12 images" in (out / "table.md").read_text()


def test_a_whole_run_is_not_run_again(model, processor, task, whole) -> None:
    before = (whole / "predictions.jsonl").stat().st_mtime_ns
    made = run(model, processor, task, whole, stop_at=0)
    assert made.folder.whole
    assert (whole / "predictions.jsonl").stat().st_mtime_ns == before


def test_another_config_is_refused_and_nothing_changes(model, processor, task, whole) -> None:
    before = {each.name: each.read_bytes() for each in whole.iterdir()}
    with pytest.raises(FoveateError, match=r"another run.*longest_answer, specs.*--out"):
        Benchmark(model, processor, task, configurations(["cls:4"]), whole)
    assert {each.name: each.read_bytes() for each in whole.iterdir()} == before


def test_a_folder_of_something_else_is_refused(model, processor, task, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FoveateError, match="no benchmark"):
        Benchmark(model, processor, task, SPECS, tmp_path)


def test_more_than_there_is_is_refused_before_anything_is_written(model, processor, task, tmp_path) -> None:
    with pytest.raises(FoveateError, match=r"random:17.*more than the 16"):
        Benchmark(model, processor, task, configurations(["random:17"]), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_keeps_per_layer_and_means_are_counted_where_they_act(deep_model, processor, task, tmp_path) -> None:
    specs = ["pool:8/2@1,2", "pool:mean=8@1,2", "cluster:8+pool:0.5@1"]
    made = Benchmark(deep_model, processor, task, specs, tmp_path / "run", longest=1)
    rows = {row["spec"]: row["tokens"] for row in made.run()["configurations"]}
    assert (rows["pool:8/2@1,2"]["after"], rows["pool:8/2@1,2"]["mean_over_layers"]) == (2, (16 + 8 + 2 + 2) / 4)
    assert rows["pool:mean=8@1,2"]["mean_over_layers"] == pytest.approx(8, abs=0.5)
    with pytest.raises(FoveateError, match=r"pool:17/8@1,2.*keep 17 is more than the 16"):
        Benchmark(deep_model, processor, task, ["pool:17/8@1,2"], tmp_path / "none")


@pytest.mark.parametrize("keep", ["0", "-1", "1.5", "NaN", "", "64,x"])
def test_bad_budgets(keep: str) -> None:
    with pytest.raises(FoveateError):
        configurations(["cluster"], keep)


def test_bad_specs() -> None:
    with pytest.raises(SpecError, match='did you mean "cluster"'):
        configurations(["clustre"])
    with pytest.raises((KeepError, SpecError)):
        configurations(["cluster:0"])


def test_crossing() -> None:
    written = [str(spec) for spec in configurations(["cluster", "cls:keep=7", "cluster:64", "pool:8+cls"], "64,0.25")]
    assert written == ["", "cluster:64", "cluster:0.25", "cls:7", "pool:8+cls:1.0"]
    assert [str(spec) for spec in configurations(["random", "cls"], "4", seed=3)][1:] == ["random:4:seed=3", "cls:4"]


def test_results_of_another_metric_are_not_reused(model, processor, task, tmp_path) -> None:
    def always(value: float) -> Any:
        return lambda response: value

    Benchmark(model, processor, task, "pool:9", tmp_path / "out", longest=2, score=always(1.0)).run()
    again = Benchmark(model, processor, task, "pool:9", tmp_path / "out", longest=2, score=always(1.0))
    assert again.folder.whole
    for other in (always(0.0), partial(lambda value, response: value, 1.0), lambda response: 1.0, Always()):
        with pytest.raises(FoveateError, match="another run"):
            Benchmark(model, processor, task, "pool:9", tmp_path / "out", longest=2, score=other)


class Always:
    def __call__(self, response: Any) -> float:
        return 1.0


def test_results_of_another_adapter_are_not_reused(model, processor, task, tmp_path) -> None:
    def run(seed: int) -> Benchmark:
        base = model_fingerprint(family_of(model).core)
        adapter = LearnedThresholds([1], features=0, base=base, seed=seed)
        adapter.source = "shipped"
        return Benchmark(model, processor, task, ATPMethod(adapter=adapter), tmp_path / "out", longest=2)

    run(0).run()
    assert run(0).folder.whole
    with pytest.raises(FoveateError, match="another run"):
        run(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": None}, "task must be a task"),
        ({"out": 3}, "out must be the path of a folder"),
        ({"longest": True}, "longest must be a whole number"),
        ({"longest": "4"}, "longest must be a whole number"),
        ({"longest": 1.5}, "longest must be a whole number"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"prompt": 3}, "prompt must be text"),
        ({"greedy": "no"}, "greedy must be True or False"),
        ({"budgets": {"x": 1.0}}, "budgets name x"),
    ],
)
def test_arguments_of_another_kind(model, processor, task, tmp_path, options, words) -> None:
    given = {"task": task, "out": str(tmp_path / "out"), **options}
    with pytest.raises(FoveateError, match=words):
        Benchmark(model, processor, given.pop("task"), "pool:9", given.pop("out"), **given)
    assert not list(tmp_path.iterdir())
