"""Training in shards (FSDP2) on two processes is training in one: losses, gradients, checkpoints, the final model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shards import sharded, told, unsharded
from tiny import recipe
from torch.distributed.fsdp import FSDPModule
from versions import CHECKPOINTING

from foveate.errors import FoveateError
from foveate.scenes import scene
from foveate.train.checkpoint import checkpoints
from foveate.train.objectives import parse_recipe
from foveate.train.prepared import prepare

pytestmark = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"),
    reason="this torch doesn't reduce gradients of weights that a process hasn't used",
)
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # its own


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with an image and rows of text alone, so that at times one process has no image and the other has."""
    folder = tmp_path_factory.mktemp("rows")
    lines: list[dict[str, str]] = []
    for number in range(4):
        scene(number).image.save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "is there a star ?", "answer": "yes"})
        lines.append({"question": "what is a star ?", "answer": "a shape"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


def given(model: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    changes = {"data": {"jsonl": str(rows)}, "batch": 4, "per_device": 1, "save_every": 1, "shards": True} | changes
    return recipe(model, **changes)


def stored(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_shards_are_one_process_and_survive_a_kill(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    recipe = given(tiny_model, rows, steps=4)
    unsharded(tmp_path / "one", recipe)
    assert sharded(tmp_path / "two", recipe) == [0, 0]
    weights = sum(value.numel() for value in load_file(tiny_model / "model.safetensors").values())
    held = [int((tmp_path / f"two {rank}").read_text()) for rank in (0, 1)]
    assert sum(held) == weights
    assert max(held) < 0.6 * weights
    for name in ("loss", "grad_norm"):
        assert told(tmp_path / "two", name) == pytest.approx(told(tmp_path / "one", name), rel=1e-5)
    same(stored(tmp_path / "one"), stored(tmp_path / "two"), 2e-6)
    # A checkpoint is in the form of one process.
    shutil.copytree(tmp_path / "two" / "checkpoint-3", tmp_path / "other" / "checkpoint-3")
    unsharded(tmp_path / "other", recipe)
    same(stored(tmp_path / "one"), stored(tmp_path / "other"), 2e-6)
    broken = tmp_path / "broken"
    assert sharded(broken, recipe, lambda: bool(checkpoints(broken))) == [-9, -9]
    assert sharded(broken, recipe) == [0, 0]
    same(stored(tmp_path / "two"), stored(broken))


def test_text_alone_in_one_of_two_shards(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Only the projector is trained, and a row in two has no image."""
    recipe = given(tiny_model, rows, batch=2, steps=2, train="projector")
    unsharded(tmp_path / "one", recipe)
    assert sharded(tmp_path / "two", recipe) == [0, 0]
    same(stored(tmp_path / "one"), stored(tmp_path / "two"), 2e-6)


@pytest.mark.slow
def test_kills_while_a_checkpoint_is_written(tiny_model: Path, rows: Path, tmp_path: Path, in_full: bool) -> None:
    if not in_full:
        pytest.skip("nox -s train runs it")
    recipe = given(tiny_model, rows, steps=4)
    unsharded(tmp_path / "one", recipe)
    assert sharded(tmp_path / "two", recipe) == [0, 0]
    broken = tmp_path / "broken"
    for count in (0, 1):
        writing = lambda: (broken / ".writing").exists() and len(checkpoints(broken)) == count  # noqa: B023, E731
        assert sharded(broken, recipe, writing) == [-9, -9]
        if not count:
            assert sharded(broken, recipe, lambda: bool(checkpoints(broken))) == [-9, -9]
    assert sharded(broken, recipe) == [0, 0]
    same(stored(tmp_path / "two"), stored(broken))
    # Shards go on from what one process has written.
    shutil.copytree(tmp_path / "one" / "checkpoint-3", tmp_path / "other" / "checkpoint-3")
    assert sharded(tmp_path / "other", recipe) == [0, 0]
    same(stored(tmp_path / "one"), stored(tmp_path / "other"), 2e-6)


@PEFT
@pytest.mark.slow
def test_adapters_in_shards(tiny_model: Path, rows: Path, tmp_path: Path, in_full: bool) -> None:
    if not in_full:
        pytest.skip("nox -s train runs it")
    pytest.importorskip("peft")
    recipe = given(tiny_model, rows, train="lora", lora={"rank": 3}, steps=4)
    unsharded(tmp_path / "one", recipe)
    broken = tmp_path / "broken"
    assert sharded(broken, recipe, lambda: bool(checkpoints(broken))) == [-9, -9]
    assert sharded(broken, recipe) == [0, 0]
    assert sharded(tmp_path / "two", recipe) == [0, 0]
    same(stored(tmp_path / "two"), stored(broken))
    same(stored(tmp_path / "one"), stored(tmp_path / "two"), 2e-6)
    adapters = [load_file(tmp_path / out / "adapter" / "adapter_model.safetensors") for out in ("one", "two")]
    same(*adapters, tolerance=2e-6)


ONE_PASS = {"tokens": 2, "two_passes": False}
OBJECTIVES = {
    "voco": {"voco": ONE_PASS, "trainer": {CHECKPOINTING: True}},
    "voco, lora": {"voco": {**ONE_PASS, "shared": False}, "train": "lora"},
}


@PEFT
@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_in_shards(tiny_model: Path, rows: Path, tmp_path: Path, name: str, in_full: bool) -> None:
    if not in_full:
        pytest.skip("nox -s train runs it")
    recipe = given(tiny_model, rows, steps=3, **OBJECTIVES[name])
    del recipe["stages"]
    unsharded(tmp_path / "one", recipe)
    assert sharded(tmp_path / "two", recipe) == [0, 0]
    for number in ("loss", "grad_norm"):
        assert told(tmp_path / "two", number) == pytest.approx(told(tmp_path / "one", number), rel=1e-4)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    files = [path for path in files if "checkpoint" not in str(path)]
    assert files
    for path in files:
        same(load_file(tmp_path / "one" / path), load_file(tmp_path / "two" / path), 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "shards go with precision: bf16 or fp32, not with fp16"),
        ({"trainer": {"optim": "adafactor"}}, "not with adafactor"),
        ({"voco": {}, "stages": None}, "voco can't be trained in shards: .* write two_passes: false"),
        ({"voco": {"distil": 0.5, "two_passes": False}, "stages": None}, "leave distil out of voco"),
        ({"atp": {"target": 0.5}, "stages": None}, "atp can't be trained in shards: its scores"),
        ({"data": {"scenes": 4, "features": "pool2d:9@features"}}, "shards exclude data.features"),
    ],
)
def test_what_shards_refuse(tiny_model: Path, rows: Path, changes: dict[str, Any], message: str) -> None:
    recipe = {key: value for key, value in given(tiny_model, rows, **changes).items() if value is not None}
    with pytest.raises(FoveateError, match=message):
        prepare(parse_recipe(recipe))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 was not tried .*; add --fsdp_version 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "FSDP_OFFLOAD_PARAMS, which was not tried",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed was not tried .*: shards: true"),
    ],
)
def test_other_shards_are_refused(
    tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FoveateError, match=message):
        prepare(parse_recipe(given(tiny_model, rows)))
