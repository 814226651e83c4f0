"""The benchmark of learned budgets runs from end to end and resumes, and the page shows its result."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from foveate.scenes import test_set as scenes_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("atp")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generators.atp")


def test_it_runs_and_goes_on(
    benchmark: ModuleType,
    page: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["atp.py", *arguments, "--work", str(tmp_path)])
        capsys.readouterr()
        benchmark.main()
        return capsys.readouterr().out

    only = ("--questions", "4", "--only", "dense;fastv:58@2;point given")
    assert "test-000500 2 configurations" in call("measure", *only)
    assert call("measure", *only) == ""
    call("points", *only)
    docs = tmp_path / "docs"
    call("report", "--out", str(docs))
    found = json.loads((docs / "measured" / "atp.json").read_text())
    assert found["questions"] == 4
    assert found["configurations"]["fastv_58_at_2"]["layers"] == [576] * 2 + [58] * 10
    (docs / "atp.md").write_text("before\n<!-- measured -->\nstale\n<!-- end -->\nbehind\n")
    monkeypatch.setattr(page, "DOCS", docs)
    monkeypatch.setattr(page, "MEASURED", docs / "measured")
    text = page.pages()["atp.md"]
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert "| `fastv:58@2` |" in text
    assert "| logits given |" in text
    assert "stale" not in text


def test_it_draws(benchmark: ModuleType, page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the tokens that stay of scenes, and the two panels of budgets from known figures."""
    shutil.copytree(ROOT / "src" / "foveate" / "embedded" / "atp", tmp_path / "144-tokens" / "atp")
    given = ["draw", "--questions", "30", "--work", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["atp.py", *given])
    benchmark.main()
    with Image.open(tmp_path / "pictures" / "atp-kept.png") as drawn:
        assert drawn.width > 1000
        assert drawn.height > 900
    kinds, skills = ("crowd", "words"), ("count", "where")
    lines = [
        {
            "scene": f"s{n}",
            "things": n,
            "kind": kinds[n % 2],
            "skill": skill,
            "layers": [576] * 2 + [10 * n + more] * 10,
        }
        for n in range(8)
        for more, skill in zip((60, 0), skills)
    ]
    need = benchmark.needs(lines)
    assert need["rank_correlation_with_things"] == pytest.approx(1.0)
    apart = {skill: one["value"] for skill, one in need["by_skill"].items()}
    assert apart["count"] - apart["where"] == pytest.approx(50)
    assert need["by_skill"]["count"]["low"] < apart["count"] < need["by_skill"]["count"]["high"]
    page.draw_budgets(need, tmp_path / "atp.png")
    with Image.open(tmp_path / "atp.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 100


def test_the_page_is_what_was_measured(page: ModuleType) -> None:
    found = json.loads((ROOT / "docs" / "measured" / "atp.json").read_text())
    text = (ROOT / "docs" / "atp.md").read_text()
    measured = text.partition("<!-- measured -->\n")[2].partition("<!-- end -->\n")[0]
    assert measured == page.measured_part(found), "run python docs/make.py atp"
    assert found["scenes"] == sum(1 for _ in scenes_of(found["questions"], found["skipped_scenes"]))
