"""Every kind of stage runs, resumes to the same weights, and what it makes loads by itself."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.train.reference import main, run
from foveate.train.stages import parse_recipe

SMALL = {"width": 48, "heads": 3, "encoder_layers": 2, "save_every": 2}
ENCODER = {"name": "encoder", "objective": "encoder", "steps": 4, "batch": 4, "side": 4, "per_scene": 2, "warmup": 2}
SYMBOLS = {
    "name": "symbols", "objective": "answers", "visual": "symbols", "layers": 1,
    "patches": 8, "steps": 6, "batch": 2, "text": 48,
}  # fmt: skip
WHOLE = {"name": "whole", "objective": "encoder", "steps": 2, "batch": 1, "align": 1.0}
FEATURES = {
    "name": "features", "objective": "answers", "layers": 2, "patches": 16, "steps": 2, "batch": 2, "text": 48,
    "align": 0.1, "train_encoder": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(2)


def test_all_stages_run_and_the_result_is_a_plain_directory(tmp_path, capsys):
    recipe = parse_recipe({**SMALL, "stages": [ENCODER, SYMBOLS, WHOLE, FEATURES]})
    model = run(recipe, tmp_path, compiled=False)
    assert "on scenes alone" in capsys.readouterr().out
    assert len(model.model.language_model.layers) == 2
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, atol=2e-2, rtol=1e-2), name
    assert AutoProcessor.from_pretrained(tmp_path / "model").image_token_id == 4
    assert json.loads((tmp_path / "features" / "done.json").read_text())["steps"] == 2
    again = run(recipe, tmp_path, compiled=False)  # nothing is left to do
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    stages = [{**SYMBOLS, "steps": 60}]
    code = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from pathlib import Path\n"
        "from foveate.train.reference import run\n"
        "from foveate.train.stages import parse_recipe\n"
        f"run(parse_recipe({ {**SMALL, 'stages': stages}!r}), Path(sys.argv[1]), compiled=False)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.DEVNULL)
    begun = time.time()
    while not (tmp_path / "a" / "symbols" / "step-0000004").exists() and time.time() - begun < 60:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "a" / "symbols" / "done.json").exists()
    (tmp_path / "a" / "symbols" / "step-0000059.partial").mkdir()  # what a kill in the middle of a write leaves
    recipe = parse_recipe({**SMALL, "stages": stages})
    run(recipe, tmp_path / "a", compiled=False)
    run(recipe, tmp_path / "b", compiled=False)
    name = "symbols/step-0000060/model.safetensors"
    resumed, whole = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
    for key, value in whole.items():
        assert torch.allclose(resumed[key], value, atol=1e-5), key


def test_the_shipped_weights_can_be_trained_on(tmp_path):
    first = parse_recipe({**SMALL, "stages": [{**SYMBOLS, "steps": 1}]})
    run(first, tmp_path / "a", compiled=False)
    second = parse_recipe({**SMALL, "init_from": str(tmp_path / "a" / "model"), "stages": [{**FEATURES, "steps": 1}]})
    model = run(second, tmp_path / "b", compiled=False)
    assert len(model.model.language_model.layers) == 2


def test_a_missing_recipe_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="nowhere"):
        main([str(tmp_path / "nowhere.yaml")])
