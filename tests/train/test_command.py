"""`foveate train` as people meet it: the table, the lines, and one line for whatever they can put right."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny import recipe
from transformers import TrainerState
from typer.testing import CliRunner

from foveate.commands import app
from foveate.train.progress import Progress
from foveate.train.timetable import Timetable


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", *arguments])
    return result.exit_code, result.output


@pytest.fixture
def path(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tiny_model, steps=4)))
    return path


def test_a_dry_run_prints_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    code, text = call(str(path), "--dry-run", "--out", str(tmp_path / "run"))
    assert code == 0
    assert "pool:0.25@2" in text
    assert "per step" in text
    code, text = call(str(path), "--dry-run", "--json", "--steps", "8")
    assert [stage["steps"] for stage in json.loads(text)["stages"]] == [4, 4]
    assert not (tmp_path / "run").exists()


def test_a_run_tells_how_long_it_takes_before_it_is_done(path: Path, tmp_path: Path) -> None:
    """On stderr; stdout has the folder of the model alone."""
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(out)])
    assert (result.exit_code, result.stdout) == (0, f"{out / 'model'}\n")
    told = [line for line in result.stderr.splitlines() if " to go for 4 steps of 4 conversations" in line]
    assert len(told) == 1
    lines = result.stderr.splitlines()
    assert lines.index(told[0]) < next(number for number, line in enumerate(lines) if line.startswith("step 3/4"))


def test_the_time_that_is_told_counts_stages_by_their_work() -> None:
    """Two dense steps of ten are done; the other eight take a quarter each."""
    said: list[str] = []
    done: list[tuple[int, int, str]] = []
    table = Timetable(10, ("dense", "pool:0.25"), (0, 2))
    progress = Progress(said.append, table, (4.0, 1.0), 4.0, 8, lambda *now: done.append(now))
    state = TrainerState(max_steps=10, is_world_process_zero=True)
    arguments = SimpleNamespace(gradient_accumulation_steps=2)
    progress.on_train_begin(arguments, state, None)  # pyright: ignore
    assert progress._steps_left(state, 1.5) == 0.5 + 8 / 4
    assert progress._steps_left(state, 6) == 4
    for _ in range(4):
        progress.on_substep_end(arguments, state, None)  # pyright: ignore
        progress.on_step_end(arguments, state, None)  # pyright: ignore
    assert [line.partition(" to go for ")[2].partition(",")[0] for line in said] == ["10 steps of 8 conversations"]
    assert done[0] == (0, 80, "Training, step 1 of 10")
    assert done[-1] == (32, 80, "Training, step 5 of 10")


def test_a_row_that_cannot_be_trained_on_is_found_first(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    path.write_text(yaml.safe_dump(recipe(tiny_model, max_length=5)))
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(tmp_path / "run")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "scene 0: its images need 36 tokens" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_tells_where_it_is(path: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    code, text = call(str(path), "--out", out)
    assert code == 0, text
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 1/4", "step 2/4", "step 3/4", "step 4/4"]
    assert "stage 1/2 pool:0.25@2" in lines[1]
    assert "stage 2/2 dense" in lines[2]
    assert all(word in lines[0] for word in ("loss ", "tokens/s", "of FLOPs saved", " left"))
    saved = [int(line.split("% of FLOPs")[0].split()[-1]) for line in lines]
    assert saved[0] == saved[1] > saved[2] > saved[3] > 0
    code, text = call(str(path), "--out", out)
    assert (code, "add --resume" in text) == (2, True)
    code, text = call(str(path), "--out", out, "--resume")
    assert (code, "nothing is left to do" in text) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.yaml",), "there is no recipe nowhere.yaml"),
        (("RECIPE", "--json"), "give both"),
        (("RECIPE", "--steps", "0"), "--steps is 0; it must be at least 1"),
        (("RECIPE", "--data", "x"), "--data belongs to the recipe of the reference model"),
        (("RECIPE", "--model", "nowhere"), "no model directory nowhere"),
    ],
)
def test_what_people_can_put_right(path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, text = call(*(str(path) if each == "RECIPE" else each for each in arguments))
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def test_a_warning_comes_first(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    stages = [{"share": 1, "spec": "pool:0.25@2"}]
    path.write_text(yaml.safe_dump(recipe(tiny_model, stages=stages, steps=1)))
    code, text = call(str(path), "--out", str(tmp_path / "run"))
    assert code == 0
    assert text.startswith("warning: the last stage trains under pool:0.25@2")


def test_the_reference_recipe_is_told_apart(path: Path) -> None:
    root = Path(__file__).parents[2]
    code, text = call(str(root / "recipes" / "reference.yaml"), "--dry-run")
    assert (code, "python -m recipes.reference.train" in text) == (2, True)
    path.write_text(yaml.safe_dump({"builds": "castle"}))
    code, text = call(str(path))
    assert (code, "builds is reference" in text) == (2, True)


def test_an_interruption_says_how_to_continue(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foveate.train.run.run", interrupted)
    code, text = call(str(path))
    assert (code, text.strip()) == (
        130,
        "interrupted; the same command with --resume continues from the last checkpoint, or starts anew",
    )


def test_the_old_module_names_the_new_command(path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "foveate.train", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "python -m foveate train" in done.stderr
