"""The benchmark of plans inside the decoder runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "depth.py"


def test_it_runs(tmp_path: Path) -> None:
    """The cache's length at every layer is checked by the script itself, against the plan and the steps decoded."""
    out = tmp_path / "depth.json"
    options = [
        "--decoders",
        "tiny*2",
        "--specs",
        "fastv:0.5@{1/4}",
        "--turns",
        "1",
        "--seconds",
        "0",
        "--steps",
        "2",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--words", "8", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (row["spec"], row["prompts"], row["mean_over_layers"]) == ("fastv:0.5@1", 2, (576 + 3 * 288) / 4)
    assert row["ideal_ms"] > 0
    wrong = subprocess.run(
        [sys.executable, str(SCRIPT), "--decoders", "7A"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "no decoder is called 7A" in wrong.stderr
