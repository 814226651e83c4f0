"""The one trainer: resumes to the same weights, is the same on two processes, switches specs at steps."""

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shards import sharded, unsharded
from tiny import recipe
from transformers.trainer_pt_utils import safe_globals
from versions import CHECKPOINTING

from foveate.errors import FoveateError
from foveate.loading import load
from foveate.scenes import scene
from foveate.train import checkpoint
from foveate.train import run as run_module
from foveate.train.checkpoint import checkpoints
from foveate.train.objectives import parse_recipe
from foveate.train.parameters import choose_parameters
from foveate.train.prepared import prepare
from foveate.train.run import run
from foveate.train.settings import RecipeError

PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # its own


def trained(folder: Path, given: dict[str, Any], **more: Any) -> dict[str, torch.Tensor]:
    run(parse_recipe(given), folder, say=lambda _: None, **more)
    return load_file(folder / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "run.json").read_text())["history"]
    return [each["loss"] for each in history if "loss" in each]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder, recipe(tiny_model))
    return folder


def test_a_run_leaves_a_plain_directory_and_no_pickles(whole: Path, tiny_model: Path) -> None:
    from foveate.loading import load

    model, processor = load(whole / "model")
    assert processor.image_token_id == 4
    before, after = load_file(tiny_model / "model.safetensors"), model.state_dict()
    tower = [name for name in after if "vision_tower" in name]
    assert tower
    stored = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(before[name], stored[name]) for name in before if "vision_tower" in name)
    assert any(not torch.equal(before[name], stored[name]) for name in before if "language_model" in name)
    assert any(not torch.equal(before[name], stored[name]) for name in before if "projector" in name)
    files = [path for path in whole.rglob("*") if path.is_file()]
    kept = [path for path in files if path.parent.name.startswith("checkpoint-")]
    assert {path.suffix for path in {*files} - {*kept}} <= {".safetensors", ".json", ".jinja"}
    assert [path.name for path in checkpoints(whole)] == ["checkpoint-4", "checkpoint-6"]
    # Checkpoints have the Trainer's own files, too, which hold nothing but tensors and plain data.
    assert {path.name for path in kept if path.suffix not in (".safetensors", ".json")} == {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    with safe_globals():  # numpy's arrays, in the random state
        for path in kept:
            if path.suffix in (".pt", ".pth"):
                torch.load(path, weights_only=True)
    told = json.loads((whole / "run.json").read_text())
    assert told["stages"] == [
        {"spec": "pool:0.25@2", "first_step": 0, "steps": 3},
        {"spec": "dense", "first_step": 3, "steps": 3},
    ]
    assert told["use_under"] == "dense"
    assert not (whole / ".writing").exists()
    logged = [each for each in told["history"] if "loss" in each]
    assert len(logged) == 6
    assert all(each["tokens_per_second"] > 0 and 0 < each["flops_saved"] < 1 for each in logged)


class _Runs:
    """Something whose pickle runs code when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_would_run_code_is_not_opened(
    whole: Path, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(whole / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    torch.save(_Runs(tmp_path / "ran"), tmp_path / "run" / "checkpoint-4" / name)
    with pytest.raises(FoveateError, match="could run code, so it was not opened"):
        trained(tmp_path / "run", recipe(tiny_model), resume=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trained.safetensors", "trainer_state.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused(whole: Path, tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Without an optimiser's state, say, transformers would go on with a new one."""
    shutil.copytree(whole / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "checkpoint-4" / name).unlink()
    with pytest.raises(FoveateError, match=f"checkpoint-4 is damaged .*: it has no {name}; remove it"):
        trained(tmp_path / "run", recipe(tiny_model), resume=True)


def test_accumulation_changes_nothing_but_rounding(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    together = trained(tmp_path / "a", recipe(tiny_model, per_device=4))
    same(load_file(whole / "model" / "model.safetensors"), together, 2e-5)
    assert losses(tmp_path / "a") == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointed_activations_change_nothing(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = trained(tmp_path / "a", recipe(tiny_model, trainer={CHECKPOINTING: True}))
    same(load_file(whole / "model" / "model.safetensors"), again, 1e-6)


def test_two_processes_are_one(tiny_model: Path, tmp_path: Path) -> None:
    """Four accumulations on each of two processes, with a stage's end between; some batches have no image.

    Rows with an image and rows of text alone take turns, so that one process at times has no image and the other has.
    """
    rows: list[dict[str, str]] = []
    for number in range(4):
        scene(number).image.save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "is there a star ?", "answer": "yes"})
        rows.append({"question": "what is a star ?", "answer": "a shape"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = recipe(tiny_model, data={"jsonl": str(tmp_path / "rows.jsonl")}, batch=8, per_device=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(given))
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Both in processes of their own, which see the same packages: torchvision, which tests add, computes other pixels.
    for start, out in (([sys.executable], "one"), (launch, "two")):
        command = [*start, "-m", "foveate", "train", str(path), "--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two"))
    same(one, two, 2e-5)
    assert done.stderr.count("step 1/6") == 1
    assert done.stdout == f"{tmp_path / 'two' / 'model'}\n"


def one_image_in(folder: Path, count: int) -> dict[str, Any]:
    """Return data of one row with an image and, behind it, rows of text alone."""
    scene(0).image.save(folder / "0.png")
    lines: list[dict[str, str]] = [{"image": "0.png", "question": "is there a star ?", "answer": "yes"}]
    lines += [{"question": "what is a star ?", "answer": answer} for answer in ("a shape", "red", "a", "yes")] * count
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines[:count])))
    return {"jsonl": str(folder / "rows.jsonl")}


VOCO: dict[str, Any] = {"voco": {"tokens": 2}}
ATP: dict[str, Any] = {"atp": {"target": 0.4, "layers": [1, 2], "calibrate": 4}}


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "projector"},
        {**VOCO, "train": "embedding", "stages": None},
        {**ATP, "train": "thresholds", "stages": None},
    ],
)
def test_text_alone_adds_nothing_to_what_is_trained_for_images(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Each step has one image: alone in its part, beside two parts of text; or in one part with the text."""
    data = one_image_in(tmp_path, 3)
    given = recipe(tiny_model, data=data, batch=3, steps=2, **changes)
    given = {key: value for key, value in given.items() if value is not None}
    for per_device in (1, 3):
        run(parse_recipe({**given, "per_device": per_device}), tmp_path / str(per_device), say=lambda _: None)
    if "atp" not in changes:  # the cost of tokens is one of each part
        apart, together = (load_file(tmp_path / each / "checkpoint-2" / "trained.safetensors") for each in "13")
        same(together, apart, 2e-5)


def test_text_alone_in_one_of_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    """The first of two steps has no image at all; the second has one, in one of its parts."""
    data = one_image_in(tmp_path, 4)
    given = recipe(tiny_model, data=data, batch=2, per_device=1, steps=2, save_every=1, train="projector")
    unsharded(tmp_path / "one", given)
    assert sharded(tmp_path / "two", given) == [0, 0]
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two"))
    same(one, two, 2e-5)


def test_nothing_but_text_is_refused_where_only_images_train(tiny_model: Path, tmp_path: Path) -> None:
    """It would end as a model that is what it was."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "what is a star ?", "answer": "a shape"}))
    given = recipe(tiny_model, data={"jsonl": str(tmp_path / "rows.jsonl")}, train="projector")
    with pytest.raises(FoveateError, match=r"step 2 of 6: all gradients have been zero, .*add rows with"):
        run(parse_recipe(given), tmp_path / "run", say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_images_that_reach_nothing_that_is_trained_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = run_module.load_model

    def cut(**source: Any) -> Any:
        model = load(**source)
        model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: output.detach())
        return model

    monkeypatch.setattr(run_module, "load_model", cut)
    with pytest.raises(FoveateError, match=r"step 1 of 6, scene \d+, scene \d+: nothing that is trained takes part"):
        run(parse_recipe(recipe(tiny_model, train="projector")), tmp_path / "run", say=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor is not passed on; .* repeat each token"),
        ({"trainer": {"neftune_noise_alpha": 5}, **VOCO}, "neftune_noise_alpha goes .* voco has a module of its own"),
        ({"trainer": {"neftune_noise_alpha": 5}, **ATP}, "neftune_noise_alpha goes .* atp has a module of its own"),
        ({"trainer": {"ddp_static_graph": True}}, "ddp_static_graph is not passed on; rows of text alone"),
        ({"trainer": {"fsdp": "full_shard"}}, "fsdp is not passed on; shards: true"),
        ({"trainer": {"remove_unused_columns": True}}, 'trainer has no key "remove_unused_columns"'),
    ],
)
def test_options_that_would_train_something_else_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe(Path("model"), **changes))


def killed(folder: Path, given: dict[str, Any], pause: float = 0.0) -> bool:
    """Resume a run in a process of its own and kill it soon after its next checkpoint, or while it writes one."""
    before = [path.name for path in checkpoints(folder)]
    child = multiprocessing.get_context("fork").Process(target=trained, args=(folder, given), kwargs={"resume": True})
    child.start()
    begun = time.time()
    while child.is_alive() and [path.name for path in checkpoints(folder)] == before and time.time() - begun < 120:
        time.sleep(0.001)
    time.sleep(pause)
    alive = child.is_alive()
    child.kill()
    child.join()
    return alive


def test_a_killed_run_ends_in_the_same_weights(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = recipe(tiny_model, save_every=1)
    assert all(killed(folder, given, pause) for pause in (0.0, 0.02, 0.04))
    assert not (folder / "model").exists()
    (folder / ".writing" / "checkpoint-5").mkdir(parents=True, exist_ok=True)  # what a kill while writing leaves
    same(load_file(whole / "model" / "model.safetensors"), trained(folder, given, resume=True))


@pytest.mark.slow
def test_many_kills_end_in_the_same_weights(tiny_model: Path, tmp_path: Path, in_full: bool) -> None:
    given = recipe(tiny_model, steps=100)
    folder = tmp_path / "run"
    assert all(killed(folder, given, pause=0.006 * i) for i in (range(20) if in_full else range(0, 20, 5)))
    same(trained(tmp_path / "whole", given), trained(folder, given, resume=True))


def test_a_finished_run_is_left_alone_and_another_recipe_refused(whole: Path, tiny_model: Path) -> None:
    stamp = (whole / "model" / "model.safetensors").stat().st_mtime
    said: list[str] = []
    run(parse_recipe(recipe(tiny_model)), whole, resume=True, say=said.append)
    assert "nothing is left to do" in said[-1]
    assert (whole / "model" / "model.safetensors").stat().st_mtime == stamp
    with pytest.raises(FoveateError, match="add --resume"):
        run(parse_recipe(recipe(tiny_model)), whole)
    with pytest.raises(RecipeError, match=r"made with lr: 0\.001, and the recipe says 0\.002"):
        run(parse_recipe(recipe(tiny_model, lr=2e-3)), whole, resume=True)


def test_a_run_does_not_go_on_with_other_data(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def write(answer: str) -> None:
        row = {"image": "0.png", "question": "what is it ?", "answer": answer}
        path.write_text("\n".join([json.dumps(row)] * 4))

    scene(0).image.save(tmp_path / "0.png")
    write("yes")
    given = recipe(tiny_model, data={"jsonl": str(path)}, steps=4)
    first = trained(tmp_path / "run", given)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    write("no")
    with pytest.raises(RecipeError, match="checkpoint-2 was made with other data: the conversations have changed"):
        trained(tmp_path / "run", given, resume=True)
    write("yes")
    stamp = (tmp_path / "0.png").stat().st_mtime_ns
    os.utime(tmp_path / "0.png", ns=(1, 1))
    with pytest.raises(RecipeError, match=r"the image files have changed since .* put them back as they were"):
        trained(tmp_path / "run", given, resume=True)
    os.utime(tmp_path / "0.png", ns=(stamp, stamp))
    shutil.copytree(tmp_path / "run", tmp_path / "earlier")
    same(first, trained(tmp_path / "run", given, resume=True))
    # Checkpoints of earlier versions don't tell.
    note = tmp_path / "earlier" / "checkpoint-2" / "recipe.json"
    note.write_text(
        json.dumps({name: value for name, value in json.loads(note.read_text()).items() if name != "fingerprint"})
    )
    said: list[str] = []
    run(parse_recipe(given), tmp_path / "earlier", resume=True, say=said.append)
    assert "warning" in said[0]
    assert "didn't note what was in the data" in said[0]


def test_each_step_runs_under_the_spec_of_its_stage(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the decoder itself: how many columns it is given, for every forward pass of an accumulated run."""
    seen: list[int] = []
    load = run_module.load_model

    def watched(**source: Any) -> Any:
        model = load(**source)
        model.model.language_model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(run_module, "load_model", watched)
    stages = [
        {"share": "1/3", "spec": "stride:4"},
        {"share": "1/3", "spec": "pool:0.5"},
        {"share": "1/3", "spec": "dense"},
    ]
    given = recipe(tiny_model, stages=stages, data={"scenes": 1, "turns": 1}, save_every=100)
    trained(tmp_path / "run", given)
    text = seen[-1] - 36
    assert [length - text for length in seen] == [4] * 4 + [18] * 4 + [36] * 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("language_model.norm.weight", r"step 1 of 6, scene \d+, scene \d+: the loss is nan"),
        ("multi_modal_projector.linear_2.bias", r"step 1 of 6, scene \d+, scene \d+: image 0 .* has NaN features"),
    ],
)
def test_hooks_are_gone_behind_a_run_that_broke_off(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, message: str
) -> None:
    held: list[Any] = []
    load = run_module.load_model

    def broken(**source: Any) -> Any:
        held.append(load(**source))
        with torch.no_grad():
            held[0].model.get_parameter(part)[0] = float("nan")
        return held[0]

    monkeypatch.setattr(run_module, "load_model", broken)
    with pytest.raises(FoveateError, match=message):
        run(parse_recipe(recipe(tiny_model)), tmp_path / "run", say=lambda _: None)
    assert not held[0].model._forward_pre_hooks
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []
    original = run_module.SafeTrainer.training_step

    def poisoned(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 7:  # the first half of step 4
            next(p for p in model.parameters() if p.requires_grad).data[0] = float("inf")
        return original(self, model, inputs, items)

    monkeypatch.setattr(run_module.SafeTrainer, "training_step", poisoned)
    with pytest.raises(FoveateError, match=r"step 4 of 6.*checkpoint-2, is from before"):
        run(parse_recipe(recipe(tiny_model)), tmp_path / "run", say=lambda _: None)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_gradients_that_are_no_numbers_stop_before_the_step(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    original = run_module.SafeTrainer._clip_grad_norm

    def poisoned(self: Any, model: Any) -> Any:
        next(p for p in model.parameters() if p.grad is not None).grad[0] = float("nan")
        return original(self, model)

    monkeypatch.setattr(run_module.SafeTrainer, "_clip_grad_norm", poisoned)
    with pytest.raises(FoveateError, match="step 1 of 6: the norm of the gradient is nan"):
        run(parse_recipe(recipe(tiny_model)), tmp_path / "run", say=lambda _: None)


def _until_full(folder: Path, given: dict[str, Any], told: Path) -> None:
    publish = checkpoint.publish

    def then_full(*args: Any) -> None:
        publish(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    checkpoint.publish = then_full
    try:
        trained(folder, given)
    except FoveateError as error:
        told.write_text(str(error))


def test_a_full_disk_leaves_the_old_checkpoint(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The system itself refuses: behind the first checkpoint no file may be longer than 20,000 bytes."""
    folder, told = tmp_path / "run", tmp_path / "told"
    child = multiprocessing.get_context("fork").Process(target=_until_full, args=(folder, recipe(tiny_model), told))
    child.start()
    child.join(120)
    assert "checkpoint-4 could not be written" in told.read_text()
    assert "checkpoint-2 is whole" in told.read_text()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    assert not (folder / ".writing").exists()
    resumed = trained(folder, recipe(tiny_model), resume=True)
    same(load_file(whole / "model" / "model.safetensors"), resumed)


@PEFT
@pytest.mark.parametrize("trained_part", ["projector", "lora"])
def test_only_what_is_named_is_trained(tiny_model: Path, tmp_path: Path, trained_part: str) -> None:
    if trained_part == "lora":
        pytest.importorskip("peft")
    after = trained(tmp_path / "run", recipe(tiny_model, train=trained_part, steps=2, save_every=1))
    before = load_file(tiny_model / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    word = {"projector": "projector", "lora": "language_model.model.layers"}[trained_part]
    assert all(word in name for name in moved)
    if trained_part == "lora":
        assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


@PEFT
def test_lora_resumes_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    given = recipe(tiny_model, train="lora", lora={"rank": 2, "dropout": 0.2}, steps=4)
    one = trained(tmp_path / "a", given)
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    same(one, trained(tmp_path / "b", given, resume=True))


def test_bf16_and_passes_over_the_data(tiny_model: Path, tmp_path: Path) -> None:
    given = recipe(tiny_model, precision="bf16", epochs=0.5)
    del given["steps"]
    assert prepare(parse_recipe(given)).timetable.steps == 2
    stored = trained(tmp_path / "run", given)
    assert all(value.isfinite().all() for value in stored.values())


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_frozen_weights_of_float16_files_go_with_the_precision(
    tiny_model: Path, precision: str, frozen: torch.dtype
) -> None:
    """What is trained begins as the file has it, without a detour by bfloat16."""
    stored = load(tiny_model, dtype="float16")[0].state_dict()
    for train in ("full", "projector"):
        model, _ = load(tiny_model, dtype="float16")
        choose_parameters(model, parse_recipe(recipe(tiny_model, precision=precision, train=train)))
        for name, weight in model.named_parameters():
            assert weight.dtype == (torch.float32 if weight.requires_grad else frozen), name
            if weight.requires_grad:
                assert torch.equal(weight, stored[name].float()), name


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_are_no_numbers_are_never_saved(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The last step's loss is finite, and its update isn't: no later loss would tell."""
    original = torch.optim.AdamW.step

    def poisoned(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        if next(iter(self.state.values()))["step"] == steps:
            self.param_groups[0]["params"][0].data.view(-1)[:3] = float("nan")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    with pytest.raises(FoveateError, match=rf"step {steps} of {steps}: 3 of the [0-9,]+ weights of .* are NaN"):
        run(parse_recipe(recipe(tiny_model, steps=steps, stages="single")), tmp_path / "run", say=lambda _: None)
    assert not checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
