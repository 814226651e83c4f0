"""Commands start without the libraries that they don't need; each runs in a new process, where nothing is imported."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from foveate.embedded import PATH
from foveate.listing import listing

PROGRAM = """
import json, sys
from typer.testing import CliRunner
from foveate.commands import app
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    print(json.dumps([result.exit_code, result.output, sorted(sys.modules)]))
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
HEAVY = {"torch._C", "transformers", "huggingface_hub", "scipy"}
"""`torch` stands in `sys.modules` before it is imported, `torch._C` doesn't."""
LISTS = (
    ("--version",),
    ("--help",),
    ("cost", "--help"),
    ("methods",),
    ("methods", "--json"),
    ("families",),
    ("families", "--json"),
    ("cost", "--devices"),
)


def every_method(temporal: bool) -> list[str]:
    """Return options that name each method, with the keep that it takes."""
    words: list[str] = []
    for each in listing():
        if each.temporal == temporal:
            keep = "" if each.options["keep"]["default"] == "1.0" and each.name == "vtw" else ":0.5"
            words += ["--spec", f"{each.name}{keep}{'@4' if each.place == 'decoder' else ''}"]
    return words


COUNTS = (
    ("count", f"{EXAMPLES}/shapes.png", "--spec", "cluster:64", "--spec", "prumerge:auto", "--spec", "stride:0.5@4,8"),
    ("count", f"{EXAMPLES}/clip.webp", "--spec", "evs:72+cluster:16", "--json"),
    ("cost",),
    ("cost", "--spec", "resize:0.25+cluster:16", "--spec", "tome:144@encoder", "--spec", "cluster:8:start=plusplus"),
    ("cost", "--model", "llava-next-7b", "--image", "900x600", "--spec", "cls:0.5", "--spec", "cluster:64:per=tile"),
    ("cost", *every_method(temporal=False)),
    ("cost", "--model", "qwen2.5-vl-7b", "--clip", "8x640x360", *every_method(temporal=True)),
    ("cost", "--model", "qwen3-vl-8b", "--clip", "16x640x360", "--spec", "evs:0.5", "--spec", "cluster:16:per=frame"),
)
BAD = (
    ("count", f"{EXAMPLES}/shapes.png", "--spec", "clustr:64"),
    ("count", f"{EXAMPLES}/shapes.png", "--spec", "cluster:9999"),
    ("count", f"{EXAMPLES}/none.png"),
    ("cost", "--spec", "cluster:64:begin=stride"),
    ("cost", "--spec", "cluster:64@99"),
    ("cost", "--model", "nothing"),
)


def run(*commands: Sequence[str], code: int = 0, also: Path | None = None) -> list[tuple[str, set[str]]]:
    """Run commands in one new process; return what each prints, and the modules that are imported then."""
    paths = [*([] if also is None else [str(also)]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    for got, printed, _ in found:
        assert got == code, printed + done.stderr
    return [(printed, set(modules)) for _, printed, modules in found]


@pytest.mark.parametrize(("commands", "code"), [(LISTS, 0), (COUNTS, 0), (BAD, 2)], ids=["lists", "counts", "bad"])
def test_what_needs_no_tensor_imports_no_torch(commands: tuple[tuple[str, ...], ...], code: int) -> None:
    for words, (printed, modules) in zip(commands, run(*commands, code=code), strict=True):
        assert printed.strip()
        assert not HEAVY & modules, words


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
    names = [row["name"] for row in json.loads(run(("methods", "--json"), also=tmp_path)[0][0])]
    ours = [each.name for each in listing()]
    assert names == sorted([*ours, "theirs"])


def modelling(modules: set[str]) -> list[str]:
    """Return the modules with the code of models."""
    return sorted(name for name in modules if re.fullmatch(r"transformers\.models\..*\.modeling_(?!auto$).*", name))


def test_other_configurations_are_read_without_the_models_code(tmp_path: Path) -> None:
    for file in PATH.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, tmp_path)
    commands = (("cost", "--model", str(tmp_path)), ("count", f"{EXAMPLES}/shapes.png", "--model", str(tmp_path)))
    for _, modules in run(*commands):
        assert not modelling(modules)
        assert not {"foveate.engine", "transformers.generation.utils"} & modules
