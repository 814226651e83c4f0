"""`foveate bulk`: from a file to a folder, killed and started again, alone and on Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from foveate.bulk import Answer, Compress, Done, run
from foveate.commands.program import app
from foveate.errors import FoveateError
from foveate.files import FolderLock
from foveate.scenes import scene

has_ray = pytest.mark.skipif(find_spec("ray") is None, reason="foveate[bulk] isn't installed")


def scenes_file(folder: Path, images: int, questions: int = 2) -> Path:
    """Rows about scenes as one Parquet file with the pictures inside; every seventh picture is broken."""
    rows: list[dict[str, Any]] = []
    for number in range(images):
        drawn = scene(number)
        picture = folder / "scene.png"
        drawn.image.save(picture)
        content = b"broken" if number % 7 == 3 else picture.read_bytes()
        rows += [
            {"id": f"{number}-{place}", "image": content, "question": each.text, "answer": str(each.answer)}
            for place, each in enumerate(drawn.questions[:questions])
        ]
    file = folder / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=32)
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def test_a_job_goes_on_and_ends(tmp_path: Path) -> None:
    file = scenes_file(tmp_path, 34)
    work = Answer("cluster:16", max_new_tokens=4)
    seen: list[tuple[int, int | None]] = []

    class Stopped(Exception):
        pass

    def stop(rows: int, of: int | None) -> None:
        seen.append((rows, of))
        raise Stopped

    with pytest.raises(Stopped):
        run(file, tmp_path / "out", work, progress=stop)
    assert seen == [(64, 68)]
    assert run(file, tmp_path / "out", work) == Done(rows=68, new=4, errors=10)
    assert run(file, tmp_path / "out", work) == Done(rows=68, new=0, errors=10)
    whole = rows_of(tmp_path / "out")
    assert [row["id"] for row in whole] == sorted(f"{number}-{place}" for number in range(34) for place in range(2))
    assert [row["id"] for row in whole if row["error"]] == [row["id"] for row in whole if int(row["id"][:-2]) % 7 == 3]
    assert {"bulk.json", ".lock"} >= {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".parquet"}
    for other, words in (
        (Answer("cluster:8", max_new_tokens=4), "with spec cluster:16, and this one has cluster:8"),
        (Answer("cluster:16", max_new_tokens=5), "with max_new_tokens 4, and this one has 5"),
        (Compress("cluster:16"), "with work Answer, and this one has Compress"),
    ):
        with pytest.raises(FoveateError, match=words):
            run(file, tmp_path / "out", other)


def test_bad_input(tmp_path: Path) -> None:
    work = Answer("cluster:16")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "what ?"}\n{"image": "b.png"}\n')
    (tmp_path / "list.jsonl").write_text("[]\n")
    parquet.write_table(pa.table({"picture": ["a"], "question": ["b"]}), tmp_path / "named.parquet")
    (tmp_path / "other").mkdir()
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "other" / "mine.parquet")
    for source, output, words in (
        ("gone.parquet", "out", "there is no file"),
        ("empty", "out", "holds no Parquet file"),
        ("text.parquet", "out", "is no Parquet file"),
        ("named.parquet", "out", "has no column image, but picture, question"),
        ("list.jsonl", "out2", "line 1 is no row"),
        ("rows.jsonl", "out3", "line 2 has no column question, but image"),
        ("rows.jsonl", "other", "holds files that no bulk job made"),
    ):
        with pytest.raises(FoveateError, match=words):
            run(tmp_path / source, tmp_path / output, work)
    (tmp_path / "out4").mkdir()
    with FolderLock(tmp_path / "out4"), pytest.raises(FoveateError, match="in use"):
        run(scenes_file(tmp_path, 1), tmp_path / "out4", work)


def test_the_command(tmp_path: Path) -> None:
    file = scenes_file(tmp_path, 4, 1)
    words = ["bulk", str(file), str(tmp_path / "out"), "--spec", "cluster:16", "--max-new-tokens", "2"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(done.stdout) == {"output": str(tmp_path / "out"), "rows": 4, "new": 4, "errors": 1}
    done = CliRunner().invoke(app, words)
    assert "out: 4 rows, 0 of them new, 1 with an error" in " ".join(done.stdout.split())
    refused = CliRunner().invoke(app, [*words[:-3], "pool:0.5@2", "--features"])
    assert refused.exit_code == 2
    assert "acts inside the decoder" in refused.stderr


def killed_and_started_again(tmp_path: Path, images: int, kills: int, actors: int) -> tuple[list[Any], list[Any]]:
    """Rows of a job that ran at once, and of one that was killed some times; prints what was there after each."""
    file = scenes_file(tmp_path, images, 1)
    done = run(file, tmp_path / "whole", Answer("cluster:16", max_new_tokens=3))
    print(f"uninterrupted, in one process: {done.rows:,} rows, {done.errors:,} with an error")
    output = tmp_path / "killed"
    words = [sys.executable, "-m", "foveate", "bulk", str(file), str(output), "--spec", "cluster:16"]
    words += ["--max-new-tokens", "3", "--actors", str(actors)]
    for _ in range(kills):
        there = len(list(output.glob("*.parquet")))
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as job:
            began = time.monotonic()
            while len(list(output.glob("*.parquet"))) == there and job.poll() is None:
                if time.monotonic() - began > 1800:
                    job.kill()
                    raise AssertionError("no part was written in half an hour")
                time.sleep(0.02)
            os.kill(job.pid, signal.SIGKILL)
        print(f"killed: {len(rows_of(output)):,} rows in {len(list(output.glob('*.parquet')))} files")
    ended = subprocess.run([*words, "--json"], check=True, capture_output=True, text=True)
    print(f"started a last time, it ended: {' '.join(ended.stdout.split())}")
    assert not list(output.glob("*.partial"))
    whole, killed = rows_of(tmp_path / "whole"), rows_of(output)
    same = sum(one == other for one, other in zip(whole, killed))
    print(f"{len(killed):,} rows with {len({row['id'] for row in killed}):,} ids; {same:,} are those of the whole run")
    return whole, killed


@pytest.mark.slow
def test_kills(tmp_path: Path, in_full: bool) -> None:
    images, kills = (400, 3) if in_full else (40, 1)
    whole, killed = killed_and_started_again(tmp_path, images, kills, actors=0)
    assert len(whole) == images
    assert killed == whole


@has_ray
@pytest.mark.slow
def test_kills_on_ray(tmp_path: Path) -> None:
    whole, killed = killed_and_started_again(tmp_path, 2000, 3, actors=2)
    assert len(whole) == 2000
    assert killed == whole
