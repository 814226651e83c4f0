"""Commands start without the libraries that they don't need; each runs in a new process, where nothing is imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from typer.testing import CliRunner
from foveate.commands import app
result = CliRunner().invoke(app, sys.argv[1:])
print(json.dumps([result.exit_code, result.stdout, sorted(sys.modules)]))
"""


def run(*words: str, also: Path | None = None) -> tuple[str, set[str]]:
    """Run a command in a new process; return what it prints, and the modules that it has imported."""
    paths = [*([] if also is None else [str(also)]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    code, printed, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, printed + done.stderr
    return printed, set(modules)


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("cost", "--help"),
        ("methods",),
        ("methods", "--json"),
        ("families",),
        ("families", "--json"),
    ],
    ids=" ".join,
)
def test_lists_and_help_need_no_torch(words: tuple[str, ...]) -> None:
    printed, modules = run(*words)
    assert printed.strip()
    assert not {"torch", "transformers", "scipy"} & modules


def test_methods_of_installed_packages_are_listed(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from dataclasses import dataclass\n"
        "from foveate.methods.random import Random\n"
        "from foveate.methods import register\n"
        '@register("theirs")\n'
        "@dataclass(frozen=True)\n"
        "class Theirs(Random):\n"
        '    """Keep some."""\n'
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[foveate.methods]\ntheirs = theirs\n")
    names = [row["name"] for row in json.loads(run("methods", "--json", also=tmp_path)[0])]
    ours = [row["name"] for row in json.loads(run("methods", "--json")[0])]
    assert names == sorted([*ours, "theirs"])


def modelling(modules: set[str]) -> list[str]:
    """Return the modules with the code of models."""
    return sorted(name for name in modules if re.fullmatch(r"transformers\.models\..*\.modeling_(?!auto$).*", name))


@pytest.mark.parametrize("words", [("count", "{image}", "--spec", "cluster:64"), ("cost", "--model", "llava-1.5-7b")])
def test_a_configuration_is_read_without_the_models_code(words: tuple[str, ...]) -> None:
    image = Path(__file__).parents[2] / "examples" / "shapes.png"
    _, modules = run(*(word.format(image=image) for word in words))
    assert not modelling(modules)
    assert not {"foveate.engine", "transformers.generation.utils"} & modules
