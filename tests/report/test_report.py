"""A report of a frozen run: what it says, what it shows, and that it needs nothing from outside."""

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import Commands

from foveate.bench import scenes
from foveate.errors import FoveateError
from foveate.report import Measured, examples, figures, read_runs, sentences, write_figures, write_page
from foveate.report.examples import checked_task
from foveate.report.page import page

MEASURED = Path(__file__).with_name("measured")
"""Made by: foveate bench --questions 30 --spec cluster:64 --spec pool:64 --spec random:64"""


@pytest.fixture(scope="module")
def run() -> Measured:
    return Measured.read(MEASURED)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The run once more, whose question is markup."""
    folder = tmp_path / "other" / "measured"
    shutil.copytree(MEASURED, folder)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line["question"] = "</script><img src=x onerror=alert(1)> & <b>"
        line["image"] = "a\u2028b"
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_changes_are_the_questions_that_are_answered_otherwise(run: Measured) -> None:
    by_number: dict[int, dict[str, str]] = {}
    for each in run.predictions:
        by_number.setdefault(each.number, {})[each.spec] = each.prediction
    expected = {number for number, texts in by_number.items() if len(set(texts.values())) > 1}
    assert {each.number for each in run.changes()} == expected
    for each in run.changes():
        assert all(text != each.dense[0] for text, _ in each.others.values())


def test_sentences_have_the_figures(run: Measured) -> None:
    text = " ".join(sentences(run))
    dense, best = run.rows[0], max(run.rows[1:], key=lambda row: row["accuracy"]["value"])
    assert f"{dense['accuracy']['value']:.1%}" in text
    assert f"With 64 tokens, {best['spec']}" in text
    assert "is best of 3 configurations" in text
    assert f"{run.metrics['floor']['overall']:.1%}" in text


def test_a_page_has_everything_inside(run: Measured) -> None:
    text = page([run])
    assert set(data_of(text)["run-0"]["figures"]) == {"tokens", "time", "differences", "skills"}
    own = text.split('<script type="module">')[0]
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]', own)
    assert "connect-src" not in own
    assert "default-src 'none'" in own
    for row in run.rows:
        assert row["spec"] in own
        assert f"{row['accuracy']['value']:.1%}" in own


def test_markup_in_questions_stays_text(changed: Path) -> None:
    run = Measured.read(changed)
    text = page([run])
    assert "<img src=x" not in text
    assert data_of(text)["run-0"]["changes"][0]["question"] == "</script><img src=x onerror=alert(1)> & <b>"


def test_several_runs_stand_side_by_side(run: Measured, changed: Path) -> None:
    runs = read_runs([MEASURED, changed])
    assert [each.name for each in runs] == ["report/measured", "other/measured"]
    text = page(runs)
    assert "Runs side by side" in text
    assert "not comparable" not in text
    assert set(data_of(text)) == {"run-0", "run-1"}


def test_pictures_and_what_is_kept(run: Measured) -> None:
    from foveate.embedded import reference

    model, processor = reference()
    shown = examples(run, checked_task(run, scenes(30)), 1, model, processor, ["cluster:64", "random:64"])
    (name,) = shown.pictures
    assert name == run.changes()[0].image
    assert {spec: count for spec, (_, count) in shown.kept[name].items()} == {"cluster:64": 64, "random:64": 64}
    assert all(address.startswith("data:image/jpeg;base64,") for address, _ in shown.kept[name].values())
    assert shown.lines
    assert "Pictures are shown of 1 of" in page([run], {run.name: shown})


def test_figures_for_papers(run: Measured, tmp_path: Path) -> None:
    files = write_figures(run, tmp_path / "figures")
    assert [file.stem for file in files] == list(figures(run))
    assert all(file.read_text().startswith("<svg") for file in files)


def test_what_is_refused(run: Measured, tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="no folder"):
        Measured.read(tmp_path / "none")
    with pytest.raises(FoveateError, match="holds no finished benchmark"):
        Measured.read(tmp_path)
    with pytest.raises(FoveateError, match="given twice"):
        read_runs([MEASURED, MEASURED])
    with pytest.raises(FoveateError, match="answered other questions"):
        checked_task(run, scenes(20))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FoveateError, match="folder"):
        write_page([run], tmp_path / "folder")


def test_the_command(tmp_path: Path) -> None:
    command = Commands()
    out = tmp_path / "page.html"
    found = command.json("report", MEASURED, "--out", out, "--pictures", 2, "--figures", tmp_path / "svg")
    assert found["report"] == str(out)
    assert len(found["figures"]) == 4
    assert "<title>Fewer visual tokens: scenes</title>" in out.read_text(encoding="utf-8")
    assert len(data_of(out.read_text(encoding="utf-8"))["run-0"]["pictures"]) == 2
    assert "must end in .html" in command.refused("report", MEASURED, "--out", tmp_path / "page.pdf")
    assert "add --kept" in command.refused("report", MEASURED, "--model", "org/name", "--out", out)
