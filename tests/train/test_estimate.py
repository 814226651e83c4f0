"""What --dry-run says is what training then takes: FLOPs as torch counts them, activations as autograd keeps them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import recipe
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.loading import load
from foveate.train.batches import Batches
from foveate.train.estimate import estimate, sampled
from foveate.train.objectives import parse_recipe
from foveate.train.parameters import choose_parameters
from foveate.train.prepared import prepare
from foveate.train.run import make_trainer
from foveate.train.trainer_options import OPTIMISERS

STAGES = [{"share": "1/2", "spec": "pool:0.25@2"}, {"share": "1/4", "spec": "pool:0.25"}, {"share": "1/4"}]


def kept_bytes(model: Any, batch: dict[str, torch.Tensor], spec: str) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass, weights left out, and FLOPs forward and backward."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**batch, use_cache=False).loss
        loss.backward()

    with FlopCounterMode(display=False) as counter:
        if spec == "dense":
            step()
        else:
            with foveate.apply(model, spec):
                step()
    return sum(seen.values()), counter.get_total_flops()


@pytest.mark.parametrize("part", ["full", "projector"])
def test_flops_and_activations_are_what_training_takes(tiny_model: Path, part: str) -> None:
    parsed = parse_recipe(recipe(tiny_model, stages=STAGES, train=part, data={"scenes": 1, "turns": 2}, batch=1))
    told = estimate(parsed)
    model, processor = load(tiny_model)
    # torch's counter knows no backward pass of the fused kernel on a CPU.
    model.set_attn_implementation("eager")
    choose_parameters(model, parsed)
    model.train()
    batch = Batches(processor, prepare(parsed).family).row(prepare(parsed).rows[0])
    del batch["attention_mask"]
    fixed = sum((16 if weight.requires_grad else 4) * weight.numel() for weight in model.parameters())
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == told.trained
    for stage in told.stages:
        kept, flops = kept_bytes(model, batch, stage.spec)
        assert stage.flops == pytest.approx(flops, rel=0.08)
        if part == "full":
            assert stage.memory - fixed == pytest.approx(kept, rel=0.25)
    assert told.stages[0].kept == 9
    assert told.stages[0].mean_over_layers == (36 + 36 + 9 + 9) / 4
    assert told.stages[1].mean_over_layers == 9
    assert told.visual_tokens == told.stages[2].kept == 36
    assert 0 < told.saved < 1
    assert told.stages[2].flops == told.dense_flops


def test_the_table_and_its_json(tiny_model: Path) -> None:
    told = estimate(parse_recipe(recipe(tiny_model, stages=STAGES)))
    lines = str(told).splitlines()
    assert lines[1].split()[:3] == ["1", "pool:0.25@2", "3"]
    assert "1 multiply-add = 2 FLOPs" in str(told)
    assert '"saved"' in told.to_json()


def test_a_sample_is_measured_from_the_data(tiny_model: Path) -> None:
    ready = prepare(parse_recipe(recipe(tiny_model)))
    found = sampled(ready)
    assert len(found) == 8
    assert all(one.visual == 36 and one.images == ((192, 192),) for one in found)


@pytest.mark.parametrize("name", [name for name, (package, _) in OPTIMISERS.items() if not package])
def test_optimisers_store_what_the_estimate_says(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Memory besides activations is the bytes of weights, gradients and the optimiser's state."""
    parsed = parse_recipe(recipe(tiny_model, steps=1, stages="single", trainer={"optim": name}))
    training = make_trainer(prepare(parsed), tmp_path / "run", lambda _: None, flops=False)
    training.trainer.train()
    state = training.trainer.optimizer.optimizer.state.values()  # pyright: ignore
    stored = sum(value.nbytes for each in state for value in each.values() if torch.is_tensor(value) and value.ndim)
    told = estimate(parsed)
    assert stored == pytest.approx(OPTIMISERS[name][1] * told.trained, rel=0.02, abs=0.35 * told.trained)
    plain = estimate(parse_recipe(recipe(tiny_model, steps=1, stages="single")))
    difference = (OPTIMISERS["adamw_torch"][1] - OPTIMISERS[name][1]) * told.trained
    assert plain.stages[0].memory - told.stages[0].memory == pytest.approx(difference)


def test_several_processes_keep_gradients_twice(tiny_model: Path) -> None:
    parsed = parse_recipe(recipe(tiny_model, stages="single", per_device=2))
    one, two = estimate(parsed), estimate(parsed, processes=2)
    assert two.stages[0].memory - one.stages[0].memory == pytest.approx(4 * one.trained)
