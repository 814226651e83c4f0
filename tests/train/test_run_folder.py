"""The folder of a training run: one owner, damaged checkpoints are refused, nothing of others is replaced."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import recipe, write_tiny

from foveate.errors import FoveateError, FoveateWarning
from foveate.files import FolderInUse, FolderLock
from foveate.train.checkpoint import checkpoints
from foveate.train.objectives import parse_recipe
from foveate.train.run import run


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


def train(folder: Path, given: dict[str, Any], **options: Any) -> Path:
    return run(parse_recipe(given), folder, say=lambda _: None, flops=False, **options)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, recipe(tiny_model, steps=2, save_every=1))
    return folder


def test_a_finished_run_leaves_nothing_beside_its_files(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoint-1", "checkpoint-2", "model", "run.json"]


def test_a_second_process_is_told_who_trains(tiny_model: Path, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    with lock, pytest.raises(FolderInUse, match=rf"run is in use by process {os.getpid()} .*another --out"):
        train(tmp_path / "run", recipe(tiny_model))
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_killed_run_is_taken_over(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    folder, given = tmp_path / "run", recipe(tiny_model, steps=2, save_every=1, workers=1)
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, {**given, "steps": 500}))
    child.start()
    end = time.monotonic() + 60
    while not checkpoints(folder) and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(FolderInUse, match=f"in use by process {child.pid}"):
        train(folder, given, resume=True)
    child.kill()
    child.join()
    with pytest.raises(FoveateError, match="was made with steps: 500"):
        train(folder, given, resume=True)
    shutil.rmtree(folder)
    train(folder, given)
    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (folder, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_run_in_a_relative_folder_resumes(
    tiny_model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole / "checkpoint-1", "runs/one/checkpoint-1")
    made = train(Path("runs/one"), recipe(tiny_model, steps=2, save_every=1), resume=True)
    ours, theirs = (load_file(each / "model.safetensors") for each in (made, whole / "model"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_function_prints_nothing_of_its_own(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = recipe(tiny_model, steps=1, stages=[{"share": 1, "spec": "pool:9"}])
    with pytest.warns(FoveateWarning, match="the last stage trains under pool:9"):
        run(parse_recipe(given), tmp_path / "run", flops=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trained.safetensors", "trainer_state.json", "recipe.json"],
)
@pytest.mark.parametrize("content", ["cut", "empty", "noise"])
def test_damaged_files_of_a_checkpoint(tiny_model: Path, whole: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(whole / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    file = tmp_path / "run" / "checkpoint-1" / name
    was = file.read_bytes()
    file.write_bytes({"cut": was[: len(was) // 2], "empty": b"", "noise": os.urandom(len(was))}[content])
    with pytest.raises(FoveateError, match=r"checkpoint-1 is damaged .*; remove it to go on from the one before"):
        train(tmp_path / "run", recipe(tiny_model, steps=2, save_every=1), resume=True)


@pytest.mark.parametrize("state", ["[]", '{"global_step": 7}', '{"global_step": 1, "unknown": 1}', "{}"])
def test_states_that_do_not_fit(tiny_model: Path, whole: Path, tmp_path: Path, state: str) -> None:
    shutil.copytree(whole / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").write_text(state)
    with pytest.raises(FoveateError, match="checkpoint-1 is damaged"):
        train(tmp_path / "run", recipe(tiny_model, steps=2, save_every=1), resume=True)


def test_names_that_look_like_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-²", "checkpoint-x", "checkpoint-", "checkpoint-3.partial", "checkpoint-" + "9" * 30):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-9").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_a_finished_run_of_another_recipe(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    """Its checkpoints may be gone: run.json tells its recipe."""
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    given = recipe(tiny_model, steps=2, save_every=1)
    assert train(tmp_path / "run", given, resume=True) == tmp_path / "run" / "model"
    with pytest.raises(FoveateError, match=r"run\.json was made with steps: 2, and the recipe says 3"):
        train(tmp_path / "run", {**given, "steps": 3}, resume=True)
    for content in ("{", "[]", "{}"):
        (tmp_path / "run" / "run.json").write_text(content)
        with pytest.raises(FoveateError, match=r"run\.json"):
            train(tmp_path / "run", given, resume=True)


def test_where_runs_can_not_be(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    shutil.copytree(tiny_model, tmp_path / "mine" / "model")
    (tmp_path / "other" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model" / "thesis.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    for out, text in {
        ".": "model is where the trained model goes, and holds something that no run has written",
        "/": "/ is the root of the disk",
        tmp_path / "file": "is a file; name another folder",
        tmp_path / "file" / "a": "is a file; name another place",
        tmp_path / "pipe": "is a file; name another folder",
        tmp_path / "loop": "its links lead in a circle",
        tmp_path / ("a" * 300): "use a shorter name",
        tmp_path / "other": "holds something that no run has written",
        "/proc/x": "can't be made|can't be written",
        "a\0b": "holds a NUL character",
    }.items():
        for resume in (False, True):
            with pytest.raises(FoveateError, match=text) as caught:
                train(Path(out), recipe(tiny_model), resume=resume)
            assert len(str(caught.value).splitlines()) == 1, out
    assert sorted(tmp_path.rglob("*")) == before
