"""Every command line that pages, docstrings, help and recipes show is one that the program takes.

Each runs in this process with the program's own reading of options, specs, recipes, images and questions, up to the
point where a model is loaded, a machine measured or a training begun. `count`, `cost`, `methods` and `families` run to
their end. Blocks of pages that are not marked also run as a whole: `tests/test_code_in_pages.py`.
"""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foveate.commands import app
from foveate.embedded import PATH

ROOT = Path(__file__).parents[1]
SOURCES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "src").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.*")),
]
COMMANDS = (
    *("ask", "bench", "bulk", "calibrate", "compare", "cost", "count", "families", "find-layer", "load", "methods"),
    *("play", "report", "saliency", "serve", "train", "tune"),
)
RECIPE = "recipes/llavolta/last-stage-compression.yaml"

PLACEHOLDERS = {
    # Images, questions and recipes of the reader.
    **dict.fromkeys(("photo.jpg", "image.png", "IMAGE"), "examples/shapes.png"),
    **dict.fromkeys(("questions.jsonl", "FILE", "INPUT", "rows.parquet"), "questions.jsonl"),
    **dict.fromkeys(("OUTPUT", "answers"), "out"),
    **dict.fromkeys(("recipe.yaml", "RECIPE", "{recipe}", "THIS", "recipes/144-tokens.yaml"), RECIPE),
    # A folder: what is in a dataset is not read here.
    **{"path/to/dataset": "model"},
    # Models, on the hub or made by the reader.
    **dict.fromkeys(("path/to/model", "my-model", "my-model/", "MODEL", "runs/mine/model"), "model"),
    "src/foveate/embedded/model": "model",
    **dict.fromkeys(("llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"), "model"),
    # Devices and packages that this machine may lack.
    **dict.fromkeys(("cuda", "cuda:0", "cuda:1"), "cpu"),
    "URL": "http://localhost:8000",
    # A number, a device that `foveate calibrate` measures, and a method that a guide writes.
    **{"N": "2", "this-machine": "laptop", "my-laptop": "my-laptop", "norm:64": "cluster:64"},
}
"""What stands for words of command lines that name what only the reader has."""
LEFT_OUT = {"[OPTIONS]", "..."}
"""Words that are no words of a command."""
ENDS = {">", "|", "&&", ";"}
"""Words of the shell after a command."""
WITHOUT = {"--revision": 2, "--quantize": 2}
"""Options that ask for a model of the hub, or a package; and how many words they are."""


def fenced(text: str) -> Iterator[str]:
    """The lines of code blocks that are no Python; those that end with a backslash go on."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        if language not in ("python", "pycon"):
            yield from block.replace("\\\n", " ").splitlines()


def quoted(text: str) -> Iterator[str]:
    """Code inside a sentence, which may go on in the next line."""
    yield from (" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def examples(text: str) -> Iterator[str]:
    """Lines of docstrings, help and recipes that end with a command."""
    yield from re.findall(r"^ *(?:# .*: |Example: |go on: )(foveate .*)$", text, re.MULTILINE)


def command_lines(path: Path) -> Iterator[list[str]]:
    """The words after `foveate` of each command line of a file."""
    text = path.read_text(encoding="utf-8")
    lines = (
        [*fenced(text), *quoted(text), *examples(text)] if path.suffix == ".md" else [*quoted(text), *examples(text)]
    )
    for line in lines:
        found = re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:foveate|(?:python3?|accelerate|torchrun) .*-m foveate) (.*)", line)
        if found is None:
            continue
        words = shlex.split(found[1].replace("(", "\\(").replace(")", "\\)"), comments=True)
        if words and not words[0].startswith("<"):
            yield words


LINES = [
    pytest.param(path, words, id=f"{path.relative_to(ROOT).as_posix()}-{' '.join(words)[:60]}")
    for path in SOURCES
    if path.is_file() and path.suffix in (".md", ".py", ".yaml")
    for words in {tuple(words): words for words in command_lines(path)}.values()
]


class Begins(Exception):
    """Raised where a command begins to work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reader")
    for name in ("examples", "recipes", "docs"):
        (made / name).symlink_to(ROOT / name)
    (made / "model").symlink_to(PATH)
    line = {"image": "examples/shapes.png", "question": "is there a star ?", "answer": "yes"}
    (made / "questions.jsonl").write_text(json.dumps(line) + "\n")
    return made


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Commands end where they begin to work."""

    def begins(*_: object, **__: object) -> None:
        raise Begins

    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "configuration"))
    for module, name in (
        ("foveate.loading", "load_model"),
        ("foveate.bench.hugging_face", "read_task"),
        ("foveate.bench.comparing", "read_results"),
        ("foveate.costmodel.calibrate", "calibrate"),
        ("foveate.costmodel.check", "check"),
        ("foveate.train.run", "run"),
        ("foveate.bulk", "run"),
        ("foveate.report", "read_runs"),
        ("foveate.tune", "parts_of"),
        ("foveate.server_load", "Server"),
        ("foveate.vllm_plugin.launch", "check_vllm"),
        ("foveate.play", "check_installed"),
        ("foveate.train.estimate", "estimate"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, begins)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def filled_in(words: list[str]) -> list[str]:
    """A command line with what the reader has put in for placeholders."""
    made: list[str] = []
    skipped = 0
    for word in words:
        if word in ENDS:
            break
        skipped = WITHOUT.get(word, skipped)
        if skipped:
            skipped -= 1
        elif word not in LEFT_OUT:
            made.append(PLACEHOLDERS.get(word, word))
    return made


@pytest.mark.parametrize(("path", "words"), LINES)
@pytest.mark.usefixtures("no_work")
def test_the_program_takes_the_command_line(path: Path, words: list[str]) -> None:
    if words[0] not in COMMANDS and not words[0].startswith("-"):
        # Prose such as `foveate.apply` or `foveate bench` without more words is no command line.
        pytest.fail(f"{path.name}: there is no command {words[0]}")
    if len(words) == 1 and words[0] not in ("cost", "families", "methods"):
        words = [*words, "--help"]
    if words[-1] not in PLACEHOLDERS and re.fullmatch("[A-Z]+", words[-1]):
        # Prose that says what an option takes.
        words = words[:-1]
    done = CliRunner().invoke(app, filled_in(words))
    # Prose names options without their value.
    names_an_option = words[-1].startswith("--") and f"option '{words[-1]}' requires an argument" in done.stderr
    if not isinstance(done.exception, Begins) and not names_an_option:
        assert done.exit_code == 0, f"{path.name}: foveate {shlex.join(words)}: {done.stderr or repr(done.exception)}"


def test_command_lines_are_found() -> None:
    found = [words for parameter in LINES for words in [parameter.values[1]]]
    assert len(found) > 80
    assert {words[0] for words in found} >= set(COMMANDS)
    ((page, line),) = [
        (parameter.values[0].name, " ".join(parameter.values[1]))
        for parameter in LINES
        if "how many circles" in " ".join(parameter.values[1])
    ]
    assert page == "atp.md"
    assert "--spec" in line
