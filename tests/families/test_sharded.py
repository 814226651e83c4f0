"""FSDP: a model whose weights are sharded over two processes gives what the unsharded model gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from rows import ROWS

import foveate

SOME = ("llava", "llava_next", "qwen3_vl")
"""Families that every change is tested with: one grid, tiles with newlines, DeepStack."""
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_a_sharded_model_gives_what_the_model_gives(tmp_path: Path, in_full: bool) -> None:
    """At @pixels, @encoder, @features, @input and in the decoder, with signals of both, and in training."""
    package = str(Path(foveate.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [str(HERE), package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    families = [row.name for row in ROWS] if in_full else SOME
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "fsdp_processes.py",
                str(rank),
                tmp_path / "rendezvous",
                tmp_path / "rank",
                *families,
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}").read_text())
        assert found["cases"] >= len(families)
        assert found["wrong"] == []
