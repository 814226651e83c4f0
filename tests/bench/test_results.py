"""A results folder has one owner, holds each answer once, and survives a kill at any moment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate import files
from foveate.bench.answers import Spent
from foveate.bench.results import Part, Prediction, ResultsFolder, check_results_folder
from foveate.errors import FoveateError
from foveate.files import FolderInUse

CONFIG = {"specs": ["dense", "cluster:4"], "questions": 4}
TEXTS = {"metrics.json": json.dumps({"configurations": [{"spec": "cluster:4"}, {"spec": "dense"}]}), "table.md": "|\n"}


def part(spec: str, chunk: int) -> tuple[Part, list[Prediction]]:
    numbers = (2 * chunk, 2 * chunk + 1)
    answers = [Prediction(spec, n, "a.png", None, "one\u2028two?", "red\u0085", "\u2029red", True) for n in numbers]
    return Part(spec, chunk, 32.0, 8.0, Spent(images=1, questions=2)), answers


def run(path: Path, config: dict[str, Any] | None = None) -> ResultsFolder:
    """Write what is missing of a run of two chunks, and finish it."""
    folder = ResultsFolder(path, config or CONFIG)
    with folder:
        if folder.whole:
            return folder
        done = {(each.spec, each.chunk) for each in folder.parts()}
        for spec in CONFIG["specs"]:
            for chunk in (0, 1):
                if (spec, chunk) not in done:
                    folder.add(*part(spec, chunk))
        order = sorted(folder.predictions(), key=lambda each: (CONFIG["specs"].index(each.spec), each.number))
        folder.finish(order, TEXTS)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    run(tmp_path / "whole")
    return tmp_path / "whole"


def test_characters_that_end_lines_elsewhere_are_kept(whole: Path) -> None:
    again = ResultsFolder(whole, CONFIG)
    assert [each.prediction for each in again.predictions()] == ["\u2029red"] * 8
    assert {each.question for each in again.predictions()} == {"one\u2028two?"}
    assert not whole.with_name("whole.partial").exists()
    assert {file.name for file in whole.iterdir()} == {"config.json", "parts.jsonl", "predictions.jsonl", *TEXTS}


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    first, second = (ResultsFolder(tmp_path / "a", CONFIG) for _ in range(2))
    with first:
        with pytest.raises(FolderInUse, match=rf"a.partial is in use by process {os.getpid()} on .*--out"), second:
            pass
        with pytest.raises(FolderInUse, match=r"a.partial is in use by process"):
            ResultsFolder(tmp_path / "a", CONFIG)
        with pytest.raises(FolderInUse, match=r"a.partial is in use by process"):
            check_results_folder(tmp_path / "a")
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(FolderInUse, match=r"a.partial is in use by process"):
            check_results_folder(tmp_path / "link" / "a")
    with second:
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    lines = (
        "import sys, time; sys.path[:0] = sys.argv[2:]; from pathlib import Path",
        "from foveate.bench.results import ResultsFolder",
        f"folder = ResultsFolder(Path(sys.argv[1]), {CONFIG!r})",
        "folder.__enter__(); print('locked', flush=True); time.sleep(60)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "a"), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(FolderInUse, match=f"process {owner.pid} on"):
            ResultsFolder(tmp_path / "a", CONFIG)
        owner.kill()
    assert run(tmp_path / "a").whole


def test_a_process_that_waited_finds_the_finished_run(tmp_path: Path) -> None:
    late = ResultsFolder(tmp_path / "a", CONFIG)
    run(tmp_path / "a")
    before = (tmp_path / "a" / "predictions.jsonl").stat().st_mtime_ns
    with late:
        assert late.whole
        assert sorted(row["spec"] for row in late.metrics()["configurations"]) == sorted(CONFIG["specs"])
    assert (tmp_path / "a" / "predictions.jsonl").stat().st_mtime_ns == before
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def damaged(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(change(file.read_text(encoding="utf-8").split("\n")[:-1])), encoding="utf-8")


def _joined(lines: list[str]) -> list[str]:
    return [f"{line}\n" for line in lines]


def read(path: Path) -> None:
    folder = ResultsFolder(path, CONFIG)
    folder.parts()
    folder.metrics()


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("predictions.jsonl", lambda lines: _joined([*lines, lines[0]]), "of its answers, 1 answered twice"),
        ("predictions.jsonl", lambda lines: _joined(lines[1:]), "of its answers, 1 missing"),
        (
            "predictions.jsonl",
            lambda lines: _joined([lines[0].replace('"dense"', '"cls:4"'), *lines[1:]]),
            "of its answers, 1 missing, 1 of other runs",
        ),
        (
            "predictions.jsonl",
            lambda lines: _joined([lines[0].replace('"number": 0', '"number": 1'), *lines[1:]]),
            "1 answered twice, 1 missing",
        ),
        ("predictions.jsonl", lambda lines: _joined([*lines[:-1], lines[-1][:20]]), "line 8 is not JSON"),
        ("predictions.jsonl", lambda lines: _joined(["[]", *lines]), "line 1 is no JSON object"),
        ("predictions.jsonl", lambda lines: _joined([lines[0].replace("number", "nummer"), *lines[1:]]), "no number"),
        ("predictions.jsonl", lambda lines: _joined([lines[0].replace("true", "1"), *lines[1:]]), "a wrong right"),
        ("predictions.jsonl", lambda lines: [], "of its answers, 8 missing"),
        ("parts.jsonl", lambda lines: _joined(["{}"]), "its times is no mapping|no"),
        ("metrics.json", lambda lines: ["[]"], "holds the figures of other configurations, or none"),
        ("metrics.json", lambda lines: ['{"configurations": [{"spec": "dense"}]}'], "of other configurations"),
        ("metrics.json", lambda lines: ["{"], "of other configurations, or none"),
        ("config.json", lambda lines: ["{"], "it holds no configuration"),
        ("config.json", lambda lines: ["[1]"], "it holds no configuration"),
    ],
)  # fmt: skip
def test_a_finished_folder_that_is_damaged_is_refused(whole: Path, name: str, change: Any, text: str) -> None:
    damaged(whole / name, change)
    with pytest.raises(FoveateError, match=text) as caught:
        read(whole)
    assert len(str(caught.value).splitlines()) == 1
    assert "remove its folder to measure again, or name another one with --out" in str(caught.value)


def test_answers_of_two_owners_are_given_again(tmp_path: Path, whole: Path) -> None:
    """Two processes of an earlier version wrote to one folder: what is there twice can't be trusted."""
    with ResultsFolder(tmp_path / "a", CONFIG) as folder:
        for spec in CONFIG["specs"]:
            folder.add(*part(spec, 0))
    for name in ("predictions.jsonl", "parts.jsonl"):
        file = tmp_path / "a.partial" / name
        line = file.read_text(encoding="utf-8").split("\n")[0] + "\n"
        file.write_text(line + file.read_text(encoding="utf-8"), encoding="utf-8")
    with ResultsFolder(tmp_path / "a", CONFIG) as folder:
        assert [(each.spec, each.chunk) for each in folder.parts()] == [("cluster:4", 0)]
    run(tmp_path / "a")
    for name in ("predictions.jsonl", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (whole / name).read_bytes()


class Killed(BaseException):
    """As if the process had been killed."""


def test_a_kill_at_any_write_loses_nothing(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is replaced, renamed or removed is the last thing that a process does, and the next one goes on."""
    calls = [0, 0]

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == calls[1]:
                raise Killed
            return None if name == "fsync" else original(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "open"):
        counted(name)
    last = 0
    for stop in range(1, 2000):
        out = tmp_path / f"run {stop}"
        calls[:] = [0, stop]
        try:
            run(out)
        except Killed:
            last = stop
            calls[:] = [0, 0]
            run(out)
        if last != stop:
            break
        for name in ("predictions.jsonl", "config.json", *TEXTS):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (stop, name)
        assert not out.with_name(f"{out.name}.partial").exists(), stop
    assert last > 100


@pytest.mark.parametrize("bytes_left", [0, 10, 150, 500, 1_200])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path, whole: Path, bytes_left: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        with pytest.raises(FoveateError, match=r"can't be (written|locked) \(File too large\)") as caught:
            run(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()
    run(tmp_path / "a")
    for name in ("predictions.jsonl", "config.json", *TEXTS):
        assert (tmp_path / "a" / name).read_bytes() == (whole / name).read_bytes()


def test_where_results_can_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "taken.partial").mkdir()
    (tmp_path / "taken.partial" / "thesis.txt").write_text("mine")
    (tmp_path / "blocked.partial").write_text("mine")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "run.partial").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    for out, text in {
        ".": "is the current folder, which can't be replaced; name a new folder",
        "../empty": "is the current folder",
        "/": "is the root of a disk, which can't be replaced",
        "/proc": "is the root of a disk|can't be written|no benchmark",
        "..": "holds something that is no benchmark",
        tmp_path / "file": "is a file; name another folder",
        tmp_path / "file" / "a": "file is a file; name another place",
        tmp_path / "pipe": "is a file; name another folder",
        tmp_path / "loop": "its links lead in a circle",
        tmp_path / "loop" / "a": "its links lead in a circle",
        tmp_path / ("a" * 250): "File name too long.*use a shorter name",
        tmp_path / ("a" * 300): "File name too long.*use a shorter name",
        tmp_path / "taken": "taken.partial, where results are gathered, holds something that is no benchmark",
        tmp_path / "blocked": "blocked.partial, where results are gathered, is a file",
        tmp_path / "others": "holds something that is no benchmark",
        "a\0b": "holds a NUL character",
    }.items():
        for refused in (check_results_folder, lambda path: ResultsFolder(path, CONFIG)):
            with pytest.raises(FoveateError, match=text) as caught:
                refused(Path(out))
            assert len(str(caught.value).splitlines()) == 1, out
    assert sorted(tmp_path.rglob("*")) == before


def test_where_results_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for out in ("empty", "link", "new/deeper/one", "a" * 240, os.fsdecode(b"\xff"), "two\nlines"):
        assert run(Path(out)).whole
        assert (tmp_path / out / "metrics.json").is_file()
        assert not list((tmp_path / out).parent.glob("*.partial*"))
    assert (tmp_path / "link").is_symlink()


def test_folders_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "done")
    (tmp_path / "a.partial").mkdir()
    monkeypatch.setattr(files.writing.os, "access", lambda *_, **__: False)
    with pytest.raises(FoveateError, match=r"nothing may be written to .*; check its access rights, or name another"):
        ResultsFolder(tmp_path / "new", CONFIG)
    # What is finished is only read.
    assert ResultsFolder(tmp_path / "done", CONFIG).whole
