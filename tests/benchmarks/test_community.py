"""Files of others' runs: what can't be right is refused, a line each, and a finished benchmark makes a good one."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.bench import Benchmark, scenes
from foveate.errors import FoveateError

community = importlib.import_module("generators.benchmarks").benchmark("community")
(FIRST, *_) = [path for path in community.community_files() if "embedded" in path.name]

Change = Callable[[dict[str, Any]], Any]


def written(folder: Path, change: Change | None = None, name: str = "") -> Path:
    """Write the committed run with a change, under the name that it then should have."""
    data = json.loads(FIRST.read_text())
    if change is not None:
        change(data)
    try:
        name = name or community.name_of(community.Run.model_validate(data))
    except FoveateError:
        name = "run.json"
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def row(data: dict[str, Any], spec: str = "cluster:64") -> dict[str, Any]:
    """The row of a spec."""
    return next(each for each in data["rows"] if each["spec"] == spec)


def on_a_gpu(data: dict[str, Any]) -> None:
    data.update(device="cuda:0", card=None)


def renamed(data: dict[str, Any], spec: str, name: str) -> None:
    row(data, spec)["spec"] = name


def test_committed_files_are_right() -> None:
    runs, wrong = community.check_files(community.community_files())
    assert not wrong
    assert {run.model for run in runs} >= {"embedded"}


def test_the_schema_is_that_of_the_code() -> None:
    schema = json.loads((community.FOLDER / community.SCHEMA).read_text())
    assert schema == json.loads(community.schema_text()), "run: python benchmarks/community.py schema"
    assert schema["additionalProperties"] is False
    assert {"rows", "questions", "card"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d.update(gpu="H100"), 'has no key "gpu"'),
        (lambda d: row(d).update(acc=1), 'has no key "acc"'),
        (lambda d: d.pop("card"), "card"),
        (lambda d: d.update(format=2), "format"),
        (lambda d: d.update(rows=[]), "no dense row"),
        (lambda d: renamed(d, "cluster:64", "clustre:64"), 'the spec "clustre:64" can\'t be read: no method is called'),
        (lambda d: renamed(d, "cluster:64", "cluster:0"), "can't be read"),
        (
            lambda d: renamed(d, "cluster:64", "cluster:63"),
            "cluster:63 has 64 tokens after compression; on embedded it leaves 63",
        ),
        (lambda d: renamed(d, "cluster:64", "cluster:64@40"), "embedded doesn't take cluster:64@40"),
        (lambda d: renamed(d, "cluster:64", "cls:64"), "cls:64 has 2 rows"),
        (
            lambda d: row(d)["tokens"].update(before=500),
            "tokens before compression are 500 in one row and 576 in another",
        ),
        (
            lambda d: row(d)["tokens"].update(over_layers=70),
            "cluster:64 has 70 tokens over layers; on embedded it has 64",
        ),
        (lambda d: row(d)["tokens"].update(after=577), "577 tokens after compression"),
        (lambda d: row(d, "dense")["tokens"].update(after=64), "dense has 64 of 576 tokens"),
        (lambda d: row(d).update(tokens=None), "doesn't say how many tokens"),
        (lambda d: row(d).update(loyalty=1.5), "loyalty 1.5"),
        (
            lambda d: row(d)["scores"].update(gqa={"exact_match": 0.5}),
            "scores of gqa, scenes, and questions are of scenes",
        ),
        (lambda d: row(d)["scores"].update(scenes={}), "has no score of scenes"),
        (lambda d: row(d)["difference"].update(value=0.5), "and difference says 0.5"),
        (lambda d: d["rows"].remove(row(d, "dense")), "no dense row"),
        (lambda d: d["rows"].__setitem__(slice(1, None), []), "one configuration"),
        (on_a_gpu, "device is cuda:0 and card is empty; name the GPU"),
        (lambda d: d.update(card="NVIDIA H100"), "device is cpu; a card goes with cuda"),
        (lambda d: d.update(model="llava"), 'model is "llava"; write its name on the hub'),
        (lambda d: d["versions"].pop("torch"), "versions lacks torch"),
        (lambda d: d.update(program="lmms-eval"), "versions lacks lmms-eval"),
        (lambda d: d.update(finished="yesterday"), 'finished is "yesterday"'),
        (lambda d: d.update(questions={}), "questions names no task"),
        (lambda d: d.update(questions={"scenes": 0}), "questions"),
        (lambda d: d.update(command="foveate bench --model /home/ann/model"), "command names the folder /home/ann"),
        (lambda d: row(d).update(loyalty="much"), "loyalty"),
    ],
)
def test_what_cannot_be_right_is_refused_with_a_line(tmp_path: Path, change: Change, line: str) -> None:
    path = written(tmp_path, change)
    runs, wrong = community.check_files([path])
    assert not runs
    assert any(line in each for each in wrong), wrong
    assert all("\n" not in each and each.startswith(f"{community.shown_path(path)}: ") for each in wrong)


def test_duplicates_and_names(tmp_path: Path) -> None:
    first = written(tmp_path)
    again = written(tmp_path, lambda d: d.update(by="somebody else", finished="2026-12-01T00:00:00Z"), "again.json")
    runs, wrong = community.check_files([first, again])
    assert len(runs) == 1
    assert wrong == [f"{community.shown_path(again)}: the same run as {first.name}; keep one"]
    first.rename(tmp_path / "mine.json")
    _, (line,) = community.check_files([tmp_path / "mine.json"])
    assert line.endswith(f"its name must be {first.name}, which follows from what it holds")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "JSON"),
        ("[1]", "no JSON object"),
        ('{"format": 1, "format": 1}', "twice"),
        ('{"format": NaN}', "NaN"),
        ("[" * 200 + "]" * 200, "deep"),
    ],
)
def test_files_that_are_no_run(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    _, (found,) = community.check_files([path])
    assert line in found
    assert found.count("run.json") == 1


def test_weights_that_only_the_sender_has_are_no_error(tmp_path: Path) -> None:
    """Nobody can read them here, so the rest of the spec is checked, and counts only against each other."""

    def changed(data: dict[str, Any]) -> None:
        row(data).update(
            spec='atp:mean=144:adapter="runs/my atp"', tokens={"before": 576, "after": 50.5, "over_layers": 148}
        )

    assert not community.check_files([written(tmp_path, changed)])[1]


def test_a_finished_benchmark_becomes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    model, processor = foveate.reference()
    out, sent = tmp_path / "mine", tmp_path / "sent"
    command = "foveate bench --questions 3 --spec cluster:64 --out mine"
    Benchmark(model, processor, scenes(3), ["cluster:64"], out, 3, command).run()

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["community.py", *words])
        return community.main()

    assert run("make", str(out), "--by", "Ann", "--out", str(sent)) == 0
    (path,) = sent.glob("*.json")
    assert capsys.readouterr().out.strip() == str(path)
    made = json.loads(path.read_text())
    assert (made["model"], made["by"], made["command"], made["questions"]) == (
        "embedded",
        "Ann",
        command,
        {"scenes": 3},
    )
    metrics = json.loads((out / "metrics.json").read_text())
    for given, own in zip(metrics["configurations"], made["rows"], strict=True):
        assert own["spec"] == given["spec"]
        assert own["scores"] == {"scenes": {"words": given["accuracy"]["value"]}}
    assert run("check", str(path)) == 0
    assert "1 files, nothing wrong" in capsys.readouterr().out
    assert run("make", str(out), "--card", "NVIDIA H100") == 2
    assert "leave --card out" in capsys.readouterr().err
    assert run("make", str(tmp_path), "--out", str(sent)) == 2
    assert "has 0 files *_results.json" in capsys.readouterr().err
    assert run("make", str(out), "--model", "mine", "--out", str(sent)) == 1
    assert 'model is "mine"' in capsys.readouterr().err
    assert [each.name for each in sent.iterdir()] == [path.name]
