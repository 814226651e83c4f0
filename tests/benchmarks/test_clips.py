"""The benchmark of clips answers in chunks that it doesn't answer twice, and its tables come from its file."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from foveate.bench.answers import Asker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_clips_are_answered_once_and_compared_with_fewer_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "docs")
    benchmark = importlib.import_module("clips")
    pages = importlib.import_module("generators.clips")
    monkeypatch.setattr(benchmark, "FLOOR_CLIPS", 3)
    specs = ["dycoke:{}", "evs:{}", "frames:{}:positions=pack"]
    arguments = ["--clips", 1, "--frames", 4, "--runs", tmp_path / "runs", "--out", tmp_path / "clips.json"]
    monkeypatch.setattr(sys, "argv", ["clips.py", *map(str, arguments), "--specs", *specs])
    assert benchmark.main() == 0
    found = json.loads((tmp_path / "clips.json").read_text())
    rows = {row["what"]: row for row in found["rows"]}
    assert (found["frames"], found["clips"], sum(found["by_skill"].values())) == (4, 5, found["questions"])
    assert (rows["dense"]["tokens"], rows["evs:72"]["tokens"]) == (144, 72)
    # 144 of 144 tokens is the whole clip.
    assert rows["evs:144"]["skills"] == rows["dense"]["skills"]
    assert rows["evs:144"]["over_dense"]["value"] == 0
    assert "over_frames" in rows["evs:72"]
    assert "over_frames" not in rows["frames:72:positions=pack"]
    assert found["refused"]["dycoke:36"]["budget"] == 36

    def answered(*_: object) -> None:
        pytest.fail("everything was answered before")

    monkeypatch.setattr(Asker, "answer", answered)
    assert benchmark.main() == 0
    text = pages.measured_part(found)
    assert "| `evs:72` | 72 |" in text
    assert "Refused at this budget: `dycoke:36`." in text
    assert text.count("where something moves") == 1
