"""Every kind of stage runs, resumes to the same weights, and what it makes loads by itself."""

import copy
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import pytest
import torch
from recipes.reference.optimisers import MuonAndAdamW
from recipes.reference.recipe import parse_reference as parse_recipe
from recipes.reference.train import run
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.train.checkpoint import checkpoints
from foveate.train.settings import RecipeError

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
    with pytest.raises(RecipeError, match="add --resume"):
        run(recipe, tmp_path, compiled=False)
    again = run(recipe, tmp_path, resume=True, compiled=False)  # nothing is left to do
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def _runs(folder, given):
    run(parse_recipe(given), folder, resume=True, compiled=False, say=lambda _: None)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    given = {**SMALL, "stages": [{**SYMBOLS, "steps": 12}]}
    folder = tmp_path / "a" / "symbols"
    child = multiprocessing.get_context("fork").Process(target=_runs, args=(tmp_path / "a", given))
    child.start()
    begun = time.time()
    while not (folder / "checkpoint-4").exists() and time.time() - begun < 60:
        time.sleep(0.005)
    child.kill()
    child.join()
    assert not (folder / "done.json").exists()
    assert int(checkpoints(folder)[-1].name.split("-")[1]) < 12
    _runs(tmp_path / "a", given)
    _runs(tmp_path / "b", given)
    name = "symbols/trainee.safetensors"
    resumed, whole = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


def test_the_shipped_weights_can_be_trained_on(tmp_path):
    first = parse_recipe({**SMALL, "stages": [{**SYMBOLS, "steps": 1}]})
    run(first, tmp_path / "a", compiled=False)
    second = parse_recipe({**SMALL, "init_from": str(tmp_path / "a" / "model"), "stages": [{**FEATURES, "steps": 1}]})
    model = run(second, tmp_path / "b", compiled=False)
    assert len(model.model.language_model.layers) == 2


def test_its_optimiser_is_muon_and_adamw_and_remembers_both():
    net = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "head": torch.nn.Linear(4, 2)})
    twin = copy.deepcopy(net)
    x = torch.randn(8, 4)

    def step(model, optimiser):
        model.head(model.layers[0](x)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    one = MuonAndAdamW(net, 0.1)
    assert [group["lr"] for group in one.param_groups] == [0.1, 0.4 * 0.1]
    step(net, one)
    twin.load_state_dict(net.state_dict())
    other = MuonAndAdamW(twin, 0.1)
    torch.save(one.state_dict(), path := Path(tempfile.mkdtemp()) / "optimizer.pt")
    other.load_state_dict(torch.load(path, weights_only=True))
    for group in (*one.param_groups, *other.param_groups):
        group["lr"] = 0.03
    before = net.head.weight.clone()
    step(net, one)
    step(twin, other)
    assert not torch.equal(net.head.weight, before)
    for name, value in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
