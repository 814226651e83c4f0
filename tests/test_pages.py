"""Generated pages are up to date, and `docs/make.py` writes and removes pages as it says."""

import subprocess
import sys
from pathlib import Path

import pytest

import make

ROOT = Path(__file__).parents[1]
GENERATORS = make.found()


@pytest.mark.parametrize("name", GENERATORS)
def test_pages_are_what_their_generator_makes(name: str) -> None:
    assert not make.outdated(GENERATORS[name].pages()), f"run: python docs/make.py {name}"


def test_every_page_with_a_generator_is_known() -> None:
    assert {"accuracy", "cost", "families", "faster", "inside", "llavolta", "methods", "speed", "support"} <= {
        *GENERATORS
    }


def test_pages_are_written_and_old_ones_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("methods/gone.md", "other.md", "methods/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made = {"methods.md": "all", "methods/pool.md": "one"}
    assert make.outdated(made, tmp_path) == ["methods.md", "methods/pool.md", "methods/gone.md"]
    make.write(made, tmp_path)
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert there == ["methods.md", "methods/notes.txt", "methods/pool.md", "other.md"]
    assert (tmp_path / "methods/pool.md").read_text() == "one"
    assert capsys.readouterr().err == "wrote 2 pages\n"
    assert make.outdated(made, tmp_path) == []


def test_the_command_checks_without_writing_and_names_generators(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make.py"), "inside", "--check"], check=False)
    assert done.returncode == 0

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["make.py", *words])
        return make.main()

    assert run("inside", "--list") == 0
    assert capsys.readouterr().out == "inside: inside.md\n"
    with pytest.raises(SystemExit) as ended:
        run("outside")
    assert ended.value.code == 2
    assert "unknown generator 'outside'; there are accuracy, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("inside", "--check", "--measure")
    assert "--check writes nothing" in capsys.readouterr().err
