"""Thresholds train alone or with the model, resume to the same weights, and are used by a spec."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TOKENS, recipe, write_tiny

import foveate
from foveate.loading import load
from foveate.train.batches import Batches
from foveate.train.objectives import parse_recipe
from foveate.train.prepared import prepare
from foveate.train.run import run
from foveate.train.settings import RecipeError
from foveate.train.sources import Scenes

ATP = {"target": 0.6, "layers": [1, 2], "calibrate": 8, "mean": 5.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def given(folder: Path, **changes: Any) -> dict[str, Any]:
    whole = recipe(folder, **{"atp": ATP, "train": "thresholds", "lr": 0.02, "steps": 4, **changes})
    del whole["stages"]
    return whole


def test_thresholds_alone_and_resumed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = run(parse_recipe(given(tiny)), tmp_path / "whole", say=said.append)
    assert found == tmp_path / "whole" / "atp"
    assert any("temperature" in line and "tokens 0." in line for line in said)
    short = tmp_path / "short"

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 3/"):
            raise Stop

    with pytest.raises(Stop):
        run(parse_recipe(given(tiny)), short, say=stop)
    run(parse_recipe(given(tiny)), short, resume=True, say=lambda _: None)
    one, other = (load_file(folder / "atp" / "atp.safetensors") for folder in (tmp_path / "whole", short))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["predictors.0.redundancy.weight"].abs().max() > 1e-3, "nothing was learned"

    # The distance to the target is that of the conversations at a time: two of four here.
    for per_device, processes, refused in (
        (1, 1, True),
        (None, 1, True),
        (2, 4, True),
        (None, 2, False),
        (2, 1, False),
    ):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        again = parse_recipe(given(tiny, per_device=per_device, log_every=2))
        told = pytest.raises(RecipeError, match=r"2 conversations at a time .* write per_device: 2")
        with told if refused else nullcontext():
            run(again, tmp_path / "whole", resume=True, say=lambda _: None)
    monkeypatch.undo()

    model, processor = load(tiny)
    rows = Scenes(4, turns=1)
    batch = Batches(processor, foveate.families.family_of(model))([(n, rows[n]) for n in range(4)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad(), foveate.apply(model, f"atp:adapter={found}") as applied:
        model(**inputs)
    images = applied.report().images
    assert all(image.layers[0] == TOKENS > image.layers[1] >= image.layers[2] for image in images)


# Asked for by peft.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_along_with_the_model(tiny: Path, tmp_path: Path) -> None:
    """Its weights change, and the adapter belongs to the trained model."""
    for train in ("full", "lora"):
        out = run(parse_recipe(given(tiny, train=train, steps=2, lr=1e-3)), tmp_path / train, say=lambda _: None)
        assert out == tmp_path / train / "model"
        model, _ = load(out)
        with foveate.apply(model, f"atp:adapter={tmp_path / train / 'atp'}"):
            pass
        with (
            pytest.raises(foveate.FoveateError, match="another base model"),
            foveate.apply(load(tiny)[0], f"atp:adapter={tmp_path / train / 'atp'}"),
        ):
            pass


@pytest.mark.parametrize(("stored", "train"), [("float16", "full"), ("bfloat16", "projector")])
def test_files_in_half_precision(tiny: Path, tmp_path: Path, stored: str, train: str) -> None:
    """A frozen encoder in 2 bytes beside a projector in float32, before, while and after training."""
    for part in load(tiny, dtype=stored):
        part.save_pretrained(tmp_path / "half")
    changes = {"train": train, "precision": "bf16", "steps": 1}
    out = run(parse_recipe(given(tmp_path / "half", **changes)), tmp_path / "run", say=lambda _: None)
    model, _ = load(out)
    with foveate.apply(model, f"atp:adapter={tmp_path / 'run' / 'atp'}"):
        pass


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_thresholds_have_a_learning_rate_of_their_own(tiny: Path, tmp_path: Path) -> None:
    """The model's is almost zero, so only the thresholds change."""
    changes = {"train": "lora", "steps": 3, "lr": 1e-12, "save_every": 2, "atp": {**ATP, "lr": 0.05}}
    run(parse_recipe(given(tiny, **changes)), tmp_path, say=lambda _: None)
    learned = load_file(tmp_path / "atp" / "atp.safetensors")
    assert learned["predictors.0.redundancy.weight"].abs().max() > 0.01
    before, after = (load(folder)[0].state_dict() for folder in (tiny, tmp_path / "model"))
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atp": None}, "the recipe has no atp"),
        ({"atp": {"target": 1.5}}, "target is a share of the tokens"),
        ({"atp": {**ATP, "temperature": 99.0}}, "up to sharpest"),
        ({"atp": {**ATP, "acts_on": "heads"}}, "acts_on is one of keys, values"),
        ({"atp": {**ATP, "grid": 5}}, "grid is one of 0, 2, 3, 4"),
        ({"atp": {**ATP, "grid": 4, "parts": ["self"]}}, "which parts leaves out"),
        ({"atp": {**ATP, "lr": 0}}, "lr is more than 0"),
        ({"atp": {**ATP, "layer": [1]}}, 'did you mean "layers"?'),
        (
            {"atp": {**ATP, "acts_on": "values"}, "trainer": {"activation_checkpointing": True}},
            "atp: acts_on: values can't be trained with activation checkpointing",
        ),
        ({"test": "pool:0.5"}, "leave stages and test out"),
        ({"data": {"scenes": 4, "features": "pool2d:9:positions=pack@features"}}, "neither voco nor data.features"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], message: str) -> None:
    whole = {**given(Path("model")), **changes}
    if whole["atp"] is None:
        whole["stages"] = [{"share": 1}]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(whole)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1, 99]}, "atp: layers [1, 99]: this decoder has 4 layers; name some from 1 to 3"),
        ({"layers": [0, 2]}, "atp: layers [0, 2]: name some, ascending, from 1 on"),
        ({"layers": [2, 1]}, "atp: layers [2, 1]: name some, ascending, from 1 on"),
        ({"parts": []}, "name some of self, cross, spatial, each once"),
        ({"parts": ["self", "self"]}, "name some of self, cross, spatial, each once"),
        ({"width": 2_000_000}, "width"),
        (
            {"target": 0.05},
            "atp: target: 0.05 of the tokens per layer can't remain: layers before layer 1 of 4 have all",
        ),
        ({"target": 0.25}, "the share is more than 0.25 and up to 1"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(tiny: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        prepare(parse_recipe(given(tiny, atp={**ATP, **changes})))
    assert message in str(caught.value)
