"""The comparison of training schedules runs from end to end, goes on where it was, and its page is what it makes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_it_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("llavolta")
    out, report = tmp_path / "out", tmp_path / "new" / "llavolta.json"
    given = ["llavolta", "--tiny", "--only", "last-stage-compression-1", "--questions", "9"]
    monkeypatch.setattr(sys, "argv", [*given, "--out", str(out), "--report", str(report)])
    assert script.main() == 0
    (run,) = json.loads(report.read_text())["runs"]
    assert run["stages"] == [["pool:0.0625@1", 3], ["pool:0.0625@6", 2], ["pool:0.25@6", 3]]
    assert 0 < run["flops"] < run["dense_flops"]
    assert [test["spec"] for test in run["tests"]] == ["dense", "pool:0.25@6"]
    assert all(test["value"] == test["right"].count("1") / len(test["right"]) for test in run["tests"])
    # The weights of every test are the trained ones, and what is missing is made again, nothing else.
    (out / "last-stage-compression-1" / "test-pool-0-25-6.json").unlink()
    report.unlink()
    capsys.readouterr()
    assert script.main() == 0
    said = "".join(capsys.readouterr())
    assert "under pool:0.25@6" in said
    assert "step" not in said
    assert "under dense" not in said
    assert json.loads(report.read_text())["runs"] == [run]
    # Another machine, which has the report alone, makes nothing again.
    monkeypatch.setattr(sys, "argv", [*given, "--out", str(tmp_path / "other"), "--report", str(report)])
    assert script.main() == 0
    assert "step" not in "".join(capsys.readouterr())
    assert json.loads(report.read_text())["runs"] == [run]
    monkeypatch.setattr(sys, "argv", [*given[:-1], "10", "--out", str(out), "--report", str(report)])
    with pytest.raises(SystemExit, match="another setting"):
        script.main()
