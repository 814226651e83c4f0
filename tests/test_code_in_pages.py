"""The code in README and docs runs: Python blocks, and console blocks whose commands are foveate's own.

A block that can't run here has a comment in front of it that says why: `<!-- skip: next "needs a GPU" -->`.
Examples in pycon blocks are copied from docstrings and run there, as doctests.
"""

import importlib
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

import pytest
import torch
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md")),
]
ELSEWHERE = {
    "add-a-method.md": "tests/test_guides.py",
    "add-a-family.md": "tests/test_guides.py",
    "design.md": "tests/test_docs.py",
    "voco.md": "tests/voco/test_page.py",
}
"""Pages whose Python runs in another test, which asserts more."""
PRINTED = {
    "README.md": (
        "brown\n",
        "cluster:64: 576 -> 64 visual tokens",
        *("35.5", "106.1", "142.56", "17.5", "31.8", "77.69", "9.71", "366.5", "34.57", "2.86", "98.0", "10.49"),
    ),
    "docs/cost.md": ("1728 -> 64 visual tokens",),
}
"""What the code of a page prints, among other things."""


def run_console(example: Example) -> None:
    """Run each foveate command of a console block in this process."""
    for words in commands(example.parsed):
        module, _, function = entry_point().partition(":")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            try:
                code = getattr(importlib.import_module(module), function)()
            except SystemExit as stop:
                code = stop.code
        assert not code, f"{shlex.join(words)} ended with {code}"


def entry_point() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["foveate"]


def commands(block: str) -> list[list[str]]:
    """The foveate commands of a console block; lines that end with a backslash go on."""
    lines = block.replace("\\\n", " ").splitlines()
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in split if words and words[0] == "foveate"]


def parsed(page: Path) -> Document:
    parsers = [SkipParser(), CodeBlockParser("bash", run_console)]
    if page.name not in ELSEWHERE:
        parsers.append(PythonCodeBlockParser())
    return Sybil(parsers=parsers).parse(page)


WITH_CODE = [page for page in PAGES if list(parsed(page).examples())]


def is_marker(example: Example) -> bool:
    return isinstance(example.parsed, tuple)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write into that has the examples and recipes of the repository, and a finished benchmark."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "tests" / "report" / "measured", tmp_path / "results" / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    torch.set_num_threads(1)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if list(parsed(page).examples())],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
@pytest.mark.usefixtures("folder")
def test_the_code_of_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for example in parsed(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
    printed = capsys.readouterr().out
    for text in PRINTED.get(page.relative_to(ROOT).as_posix(), ()):
        assert text in printed


def test_how_many_blocks_run_and_which_are_marked(record_property: Callable[[str, object], None]) -> None:
    run, marked = 0, {}
    for page in PAGES:
        for example in parsed(page).examples():
            if is_marker(example):
                action, reason = example.parsed
                assert action == "next", f"{page.name}: mark single blocks"
                marked[f"{page.name}:{example.line}"] = reason
            elif example.region.evaluator is not run_console or commands(example.parsed):
                run += 1
    run -= len(marked)
    assert all(reason for reason in marked.values()), f"a marker needs a reason: {marked}"
    record_property("blocks that run", run)
    record_property("blocks that are marked", len(marked))
    print(f"{run} blocks run; {len(marked)} are marked:", *marked.items(), sep="\n")
    assert run > len(marked)


def test_pages_that_run_elsewhere_do() -> None:
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text()
