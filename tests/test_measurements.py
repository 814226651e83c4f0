"""What was measured on the embedded models is measured again when they change, and says for which it was made."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import make
from generators import measurements
from generators.measurements import Measurement

ROOT = Path(__file__).parents[1]


def test_everything_was_measured_on_the_models_that_come_with_foveate() -> None:
    assert not measurements.stale(), "run: python docs/make.py --measure"


@pytest.mark.parametrize("one", measurements.measurements(), ids=lambda one: one.file)
def test_commands_are_of_programs_that_take_them(one: Measurement) -> None:
    assert (measurements.MEASURED / one.file).exists()
    assert {*one.pages} <= {*make.found()}
    for line in one.lines("runs/there"):
        program, *words = shlex.split(line)
        assert "{" not in line
        if program != "python":
            assert program == "foveate"
            continue
        script = ROOT / words[0]
        source = script.read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def test_a_command_of_bench_is_the_one_in_the_file() -> None:
    (one,) = [each for each in measurements.measurements(["readme"]) if each.file == "accuracy-readme.json"]
    asked, taken = one.lines("runs/there")
    assert asked.startswith("foveate bench --questions 500 --spec cluster ")
    assert asked.endswith("--out runs/there/accuracy-readme")
    assert taken == "python docs/make.py accuracy --take runs/there/accuracy-readme readme"


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """A file of a model that is trained, and an adapter that comes of it."""
    embedded, measured = tmp_path / "embedded", tmp_path / "measured"
    for folder in (embedded / "model", measured):
        folder.mkdir(parents=True)
    (embedded / "model" / "model.safetensors").write_bytes(b"first")
    for name, value in {
        "ROOT": tmp_path, "EMBEDDED": embedded, "MEASURED": measured, "MADE_FOR": measured / "models.json",
    }.items():  # fmt: skip
        monkeypatch.setattr(measurements, name, value)
    write = "import pathlib; work = pathlib.Path('{work}'); (work / 'adapter').mkdir(parents=True); "
    write += "(work / 'adapter' / 'a.safetensors').write_bytes(b'a'); (work / 'found.json').write_text('[1]')"
    made = Measurement(
        "found.json", ("model",), ("page",), (f'python -c "{write}"',), ships={"{work}/adapter": "small"}
    )
    monkeypatch.setattr(measurements, "measurements", lambda pages=(): [made])
    return made


def test_a_changed_model_is_measured_once(one: Measurement, capfd: pytest.CaptureFixture[str]) -> None:
    assert measurements.stale() == ["found.json"]
    assert measurements.measure(dry=True) == 0
    assert measurements.stale() == ["found.json"]
    assert measurements.measure() == 0
    assert (measurements.MEASURED / "found.json").read_text() == "[1]"
    assert (measurements.EMBEDDED / "small" / "a.safetensors").read_bytes() == b"a"
    assert json.loads(measurements.MADE_FOR.read_text()) == {"found.json": one.now}
    assert measurements.stale() == []
    capfd.readouterr()
    assert measurements.measure() == 0
    assert capfd.readouterr().out == "found.json: made for these models\n"
    (measurements.EMBEDDED / "model" / "model.safetensors").write_bytes(b"second")
    assert measurements.stale() == ["found.json"]
    assert measurements.measure() == 0
    assert len([*(measurements.ROOT / "runs" / "measure").iterdir()]) == 2, "each model has a folder of its own"


def test_what_fails_stays_stale(one: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: Any = ('python -c "raise SystemExit(3)"', *one.commands)
    failing = Measurement(one.file, one.models, one.pages, commands)
    monkeypatch.setattr(measurements, "measurements", lambda pages=(): [failing])
    assert measurements.measure() == 3
    assert measurements.stale() == ["found.json"]
    assert not (measurements.MEASURED / "found.json").exists()
