"""What commands print reaches every stream: any encoding and width, closed, full, or left by its reader."""

# ruff: noqa: RUF001  (these are characters that look like others)

import io
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from commands import EXAMPLES
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from foveate.commands import app
from foveate.commands.output import (
    add_number_columns,
    print_error,
    print_json,
    progress_bar,
    spinner,
    table,
)
from foveate.commands.screen import Screen

IMAGE = EXAMPLES / "shapes.png"
STRANGE = "[red] :smile: [/] \x1b[31m \x9b \u2028 \u202e \udcff 猫 é"
"""Markup, an emoji code, control characters, a byte of a file name that is no UTF-8, and letters."""


def raw(text: str) -> set[str]:
    """The characters of a text that steer a terminal or break lines."""
    return {each for each in text if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """An image whose name holds all that a file name may."""
    path = tmp_path / "[red]x[bold]:smile:\x1b[31m\u202e\udcff\n猫é.png"
    path.write_bytes(IMAGE.read_bytes())
    return path


def screen(width: int, encoding: str = "utf-8") -> tuple[Screen, io.BytesIO]:
    written = io.BytesIO()
    return Screen(file=io.TextIOWrapper(written, encoding=encoding, write_through=True), width=width), written


@pytest.mark.parametrize(
    ("encoding", "width"),
    [("utf-8", 20), ("cp1252", 40), ("cp437", 300), ("ascii", 80), ("latin-1", 16), ("cp932", 40)],
)
@pytest.mark.usefixtures("run")
def test_ask_and_count_in_any_encoding_and_width(strange: Path, encoding: str, width: int) -> None:
    runner = CliRunner(charset=encoding)
    for words in (
        ("count", strange, "--spec", "stride:4", "--spec", "cluster:64:start=plusplus:seed=3"),
        ("count", strange, "--json"),
        ("ask", strange, "[red] :smile: [/] 猫 ?", "--spec", "stride:4", "--max-new-tokens", "1"),
        ("methods",),
        ("ask", strange, "what \udcff ?"),
        ("count", f"{strange}x"),
    ):
        done = runner.invoke(app, list(map(str, words)), env={"COLUMNS": str(width)})
        assert isinstance(done.exception, SystemExit | None), repr(done.exception)
        printed = done.stdout_bytes.decode(encoding)
        assert not raw(printed + done.stderr)
        assert done.exit_code == (0 if printed else 2)
        # What takes long has lines of progress.
        assert printed or done.stderr.count("\n") == 1
        if words[-1] == "--json":
            assert json.loads(printed)["image"] == str(strange)
        elif printed:
            assert all(len(line) <= width for line in printed.splitlines()) or words[0] == "count"
        if words[0] == "ask" and printed:
            assert "[red] :smile: [/]" in " ".join(printed.split())


@pytest.mark.parametrize("width", [16, 20, 40, 80])
@pytest.mark.usefixtures("run")
def test_rows_can_be_told_apart(width: int) -> None:
    specs = ("cluster:64:start=plusplus:seed=3", "cluster:64:start=plusplus:seed=4", "cls:0.25@features+cluster:64")
    for command in ("count", str(IMAGE)), ("cost",):
        words = [*command, *(word for spec in specs for word in ("--spec", spec))]
        printed = CliRunner().invoke(app, words, env={"COLUMNS": str(width)}).stdout
        joined = re.sub(r"\s", "", printed)
        assert "…" not in printed
        # A spec that takes two lines of its column has cells between them; its end tells it apart.
        assert all(spec in joined or spec[-6:] in joined for spec in specs)


def test_a_table_that_does_not_fit_becomes_blocks() -> None:
    made = table("spec", title="a title")
    add_number_columns(made, "visual tokens", "of dense")
    made.caption = "what it means"
    for spec in ("cluster:64:start=plusplus:seed=3", "cluster:64:start=plusplus:seed=4"):
        made.add_row(spec, "64", Text("11.1%"))
    made.add_row()
    console, written = screen(32)
    console.print(made)
    lines = [line.rstrip() for line in written.getvalue().decode().splitlines()]
    assert lines == [
        "a title",
        "cluster:64:start=plusplus:seed=3",
        *("  visual tokens  64", "  of dense       11.1%"),
        "cluster:64:start=plusplus:seed=4",
        *("  visual tokens  64", "  of dense       11.1%"),
        "what it means",
    ]


def test_a_table_in_ascii_is_aligned() -> None:
    made = Table(title="Δ of −14 °")
    made.add_column("Δ dense")
    made.add_column("±")
    made.add_row(Text("−14 … 猫", style="bold"), "é")
    console, written = screen(80, "ascii")
    console.print(made)
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[0].strip() == "d of -14 o"
    assert len({len(line) for line in lines[1:]}) == 1
    assert "| -14 ... \\u732b |" in lines[4]


def test_the_style_of_a_text_stays_on_its_words() -> None:
    console, _ = screen(80)
    (text,) = [console._plain(Text.assemble("\x1b", ("red", "red"), "\x07", ("blue", "blue")))]
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("red", "red"),
        ("blue", "blue"),
    ]


def test_json_has_no_nan_and_no_bytes_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"numbers": [float("nan"), float("inf"), -float("inf"), 1.5], "text": STRANGE, "pair": (1, 2)}
    print_json(value)
    printed = capsys.readouterr().out
    assert not raw(printed)
    assert json.loads(printed) == {"numbers": [None, None, None, 1.5], "text": STRANGE, "pair": [1, 2]}


def test_an_error_is_short_and_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in (
        f"there is no {'x' * 100_000}; check it",
        f"the question {'what ' * 20_000} is too long",
        "two\nlines\x1b[0m",
    ):
        print_error(text)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert len(said) < 1300
        assert not raw(said)
        assert said.startswith(text[:8].replace("\n", "\\n")[:8])


@pytest.mark.parametrize(
    "spec", ["x" * 100_000, "cluster:64+" * 5_000, "cluster:64:" + "a=b:" * 3_000, "clus\nter\t:64"]
)
def test_a_long_spec_shows_the_place_alone(refuse, spec: str) -> None:
    said = refuse("count", IMAGE, "--spec", spec)
    first, second = said.splitlines()
    assert max(len(first), len(second)) < 1300
    assert len(second) - len(second.lstrip()) <= len(first)
    assert len(first[second.index("^") : second.rindex("^") + 1]) == second.count("^") or first.endswith("+")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("aks",), "no such command 'aks'. Did you mean 'ask'?  (foveate --help says what there is)"),
        (("ask", "--nothing"), "no such option: --nothing  (foveate ask --help says what there is)"),
        (("ask", "image.png"), "missing argument 'QUESTION'  (foveate ask --help says what there is)"),
        (("count", "a.png", "b.png"), "got unexpected extra argument(s) (b.png)  (foveate count --help says"),
        (("bench", "--batch", "0"), "invalid value for '--batch': "),
        (("bench", "--batch", "two"), "invalid value for '--batch': "),
        (("count", "a.png", "--spce", "x"), "--spec"),
        (("count", "a.png", "--spec"), "option '--spec' requires an argument"),
    ],
)
def test_usage_is_one_line(refuse, words, said) -> None:
    found = refuse(*words)
    assert said.lower() in found.lower()
    assert "\n" not in found


@pytest.mark.parametrize("width", [20, 40, 69, 70, 80, 120])
def test_help_names_every_option_whole(width: int) -> None:
    for command, option in (("ask", "--max-new-tokens"), ("bench", "--device-map"), ("count", "--revision")):
        printed = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": str(width)}).stdout
        assert option in printed
        assert "…" not in printed
        assert max(map(len, printed.splitlines())) <= max(width, 36)


def test_without_a_command_there_is_help() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0
    assert "find-layer" in done.stdout


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `foveate` is this program; `code` is printed to stderr."""
    program = f'foveate() {{ "{sys.executable}" -m foveate "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", program + command], capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.skipif(os.name == "nt", reason="bash and /dev/full")
def test_streams_that_are_closed_full_or_left() -> None:
    left = shell("foveate methods | head -c 1; echo ${PIPESTATUS[0]} >&2; foveate --help | true; echo $? >&2")
    assert (left.stdout.strip(), left.stderr) == ("", "0\n0\n")
    full = shell("foveate methods > /dev/full; echo $?; foveate --help > /dev/full; echo $?")
    assert full.stdout == "2\n2\n"
    assert full.stderr.count("the output can't be written (No space left on device)") == 2
    assert full.stderr.count("\n") == 2
    closed = shell("foveate methods >&-; echo $?; foveate aks 2>&-; echo $?; foveate methods >&- 2>&- <&-; echo $?")
    assert (closed.stdout, closed.stderr) == ("0\n2\n0\n", "")


@pytest.mark.skipif(os.name == "nt", reason="bash")
def test_the_terminal_is_obeyed() -> None:
    dumb = shell("foveate methods", PYTHONIOENCODING="ascii", TERM="dumb", COLUMNS="80", FORCE_COLOR="1")
    assert dumb.returncode == 0, dumb.stderr
    assert dumb.stdout.isascii()
    assert "\x1b" not in dumb.stdout
    plain = shell("foveate --version; foveate methods", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (plain.returncode, plain.stderr) == (0, "")


def test_work_off_a_terminal_shows_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import foveate.commands.output as output

    monkeypatch.setattr(output, "_FIRST_LINE", 0.01)
    monkeypatch.setattr(output, "_EVERY", 0.01)
    with progress_bar("Measuring") as advance:
        advance(3, 10, "")
        time.sleep(0.05)
        advance(5, 10, "cluster:64")
        time.sleep(0.1)
    said = capsys.readouterr().err
    assert re.search(r"^Measuring: 3 of 10, 0:00:00 so far$", said, re.MULTILINE)
    assert re.search(r"^cluster:64: 5 of 10, 0:00:00 so far, about 0:00:00 left$", said, re.MULTILINE)
    with spinner("Drawing", working=True):
        time.sleep(0.05)
    assert capsys.readouterr().err.startswith("Drawing: 0:00:00 so far\n")
    # What checks input says nothing for longer: an error stands alone.
    with spinner("Reading"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_the_hub_is_asked_with_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    import foveate.commands.output as output
    import foveate.loading as loading
    from foveate.errors import FoveateError

    def slow(*_: object) -> None:
        time.sleep(0.1)
        raise FoveateError("the hub can't be reached")

    monkeypatch.setattr(output, "_FIRST_LINE", 0.02)
    monkeypatch.setattr(loading, "commit_of", slow)
    done = CliRunner().invoke(app, ["count", str(IMAGE), "--model", "org/name"])
    assert done.stderr == "Asking the hub for org/name: 0:00:00 so far\nthe hub can't be reached\n"


def test_a_warning_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    import foveate.commands.program as program
    from foveate.errors import FoveateWarning

    def warned() -> None:
        warnings.warn("this family\x1b is unknown", FoveateWarning, stacklevel=2)

    monkeypatch.setattr(program, "app", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        program.main()
    assert capsys.readouterr().err == "warning: this family\\x1b is unknown\n"


def test_sigterm_ends_as_ctrl_c_does_and_the_run_continues(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "foveate", "bench", "--spec", "pool:9", "--questions", "90", "--max-new-tokens", "2"]
    words += ["--out", str(tmp_path / "out")]
    # So many questions that some are left when the signal comes, on a machine that does other work, too.
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        parts, end = tmp_path / "out.partial" / "parts.jsonl", time.monotonic() + 120
        while not (parts.exists() and parts.stat().st_size) and time.monotonic() < end:
            time.sleep(0.02)
        started.terminate()
        printed, said = started.communicate()
    assert (started.returncode, printed) == (130, "")
    assert said.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "Traceback" not in said
    names = {"config.json", "parts.jsonl", "predictions.jsonl"}
    assert {path.name for path in (tmp_path / "out.partial").iterdir()} == names
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.search("^Continuing: [1-9]", again.stderr, re.MULTILINE)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 180
