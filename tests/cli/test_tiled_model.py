"""The commands on a directory of a tiled family: a tiny LLaVA-NeXT with random weights."""

import json
from pathlib import Path

import pytest
from commands import Commands
from directories import save
from PIL import Image
from rows import ROWS

from foveate.images import open_image


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(next(row for row in ROWS if row.name == "llava_next"), tmp_path_factory.mktemp("tiled"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two by two tiles, of which 6 rows are left: 16 + 48 tokens and 6 newlines."""
    path = tmp_path_factory.mktemp("images") / "wide.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def test_count_says_what_it_can(tiled: Path, wide: Path) -> None:
    specs = ["pool2d:20", "cls:20", "cls:20:per=tile", "resize:0.25"]
    found = Commands().json("count", wide, "--model", tiled, *(word for spec in specs for word in ("--spec", spec)))
    assert found["grids"] == [[1, 4, 4], [1, 6, 8]]
    assert (found["content"], found["structural"], found["total"]) == (64, 6, 70)
    after = {each["spec"]: (each["fewest"], each["tokens"]) for each in found["after"]}
    # The layout tells the rows of a grid; which rows [CLS] looks at, nobody knows before.
    assert after == {"pool2d:20": (22, 22), "cls:20": (21, 26), "cls:20:per=tile": (70, 70), "resize:0.25": (19, 19)}
    table = Commands()("count", wide, "--model", tiled, "--spec", "cls:20")
    assert "4 x 4 + 6 x 8" in table
    assert "21 to 26" in table


def test_ask_draws_every_grid(tiled: Path, wide: Path, tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    words = ("--spec", "cls:9", "--spec", "cluster:4:per=tile", "--spec", "resize:0.25", "--max-new-tokens", "2")
    found = Commands().json("ask", wide, "what is it ?", "--model", tiled, *words, "--picture", picture)
    assert [each["tokens_before"] for each in found["answers"]] == [70] * 4
    dense, cls, cluster, resize = (each["tokens_after"] for each in found["answers"])
    assert dense == 70
    assert 9 <= cls <= 15
    assert 20 < cluster <= 26
    assert resize == 19
    assert open_image(picture).height > 272 + 136


def test_bench_counts_newlines(tiled: Path, wide: Path, tmp_path: Path) -> None:
    """Questions that share an image's keys and values, as the benchmark asks them."""
    task = tmp_path / "task.jsonl"
    lines = [{"image": str(wide), "question": text, "answer": "word20"} for text in ("what is it ?", "what colour ?")]
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--spec", "stride", "--spec", "cls", "--keep", "20,9", "--max-new-tokens", "2")
    found = Commands().json("bench", "--model", tiled, "--data", task, "--out", tmp_path / "run", *words)
    tokens = {each["spec"]: each["tokens"] for each in found["configurations"]}
    assert all(each["before"] == 70 for each in tokens.values())
    assert tokens["dense"]["after"] == 70
    assert tokens["stride:20"]["after"] == 4 + 15 + 3
    assert tokens["stride:9"]["after"] == 2 + 6 + 2
    assert 21 <= tokens["cls:20"]["after"] <= 26
    assert 9 <= tokens["cls:9"]["after"] <= 15
