"""The benchmark of whole calls runs from end to end, and says what is wrong before it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = ("--shape", "tiny", "--threads", "1", *arguments)
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True)


def test_a_small_run(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    specs = "stride:0.25 resize:0.25 pool:0.5@1"
    done = run(
        "--tokens", "64,100", "--batch", "1,2", "--specs", specs, "--rounds", 2, "--predict", "laptop", "--out", out
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 2 * 2 * 4
    dense, stride, resize, inside = found["rows"][:4]
    assert [row["kept"] for row in found["rows"][:4]] == [64, 16, 16, 32]
    assert dense["compressor"] == 0
    assert stride["kv_bytes"] == resize["kv_bytes"] < inside["kv_bytes"] < dense["kv_bytes"]
    assert stride["ideal_prefill"] > 0
    assert "ideal_prefill" not in inside
    for row in found["rows"]:
        assert row["rounds"] == 2
        assert min(row[part] for part in ("encoder", "prefill", "per_token", "predicted_prefill")) > 0
    assert [each.name for each in tmp_path.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tokens", "65"), "--tokens 65 is no square"),
        (("--batch", "0"), "--batch must be 1 or more"),
        (("--new-tokens", "1"), "--new-tokens must be 2 or more"),
        (("--specs", "clustre:4"), 'no method is called "clustre"'),
        (("--predict", "h1000"), 'no device is called "h1000"'),
    ],
)
def test_bad_input(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
