import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foveate.bench.answers import Spent
from foveate.bench.configurations import configurations, name_of
from foveate.bench.metrics import measure
from foveate.bench.plot import plot
from foveate.bench.report import FULL, WIDE, losses, markdown, skills_table, table
from foveate.bench.results import Part, Prediction
from foveate.bench.tasks import Task, TaskImage, TaskQuestion


@pytest.fixture
def metrics() -> Any:
    """Four images of two questions; what each configuration gets right is written by hand."""
    asked = (TaskQuestion("what ?", "red", "colour"), TaskQuestion("where ?", "left", "place"))
    task = Task("hand", tuple(TaskImage(name, Path(name), asked) for name in "abcd"), "", ("colour", "place"))
    specs = {name_of(spec): spec for spec in configurations(["random:4", "cluster:4", "stride:9"])}
    right = {"dense": "11111111", "random:4": "10101010", "cluster:4": "11101110", "stride:9": "01110111"}
    predictions = []
    for name, marks in right.items():
        for number, mark in enumerate(marks):
            question = asked[number % 2]
            text = question.answer.upper() if mark == "1" else "no"
            image = "abcd"[number // 2]
            said = (question.skill, question.text, question.answer, text, mark == "1")
            predictions.append(Prediction(name, number, image, *said))
    spent = Spent(40.0, 4.0, 20.0, 16.0, 8.0, images=4, compressions=4, questions=8)
    parts = [Part(name, 0, 64.0, {"dense": 64.0, "stride:9": 36.0}.get(name, 16.0), spent) for name in specs]
    return measure(task, specs, predictions, parts, {"colour": 0.5, "place": 0.0})


def test_numbers(metrics: Any) -> None:
    rows = {row["spec"]: row for row in metrics["configurations"]}
    assert list(rows) == ["dense", "stride:9", "random:4", "cluster:4"]
    assert rows["random:4"]["accuracy"]["value"] == 0.5
    assert rows["random:4"]["difference"]["value"] == -0.5
    assert rows["cluster:4"]["loyalty"] == 0.75
    assert rows["cluster:4"]["skills"]["place"]["accuracy"]["value"] == 0.5
    times = {"encoder": 10, "compressor": 1, "prefill": 7, "decode": 1, "total": 19}
    assert rows["dense"]["time_ms"] == {**times, "images": 4}
    assert rows["dense"]["tokens"] == {"before": 16, "after": 16, "share": 1, "mean_over_layers": 16}
    assert metrics["floor"]["overall"] == 0.25


@pytest.mark.parametrize("width", [80, FULL, WIDE])
def test_tables_fit_their_terminal(metrics: Any, width: int) -> None:
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(table(metrics, width))
    screen.print(skills_table(metrics))
    text = screen.export_text()
    assert "…" not in text
    assert "cluster:4" in text
    assert "random:4 °" in text
    assert "25.0%" in text
    (row,) = (line for line in text.splitlines() if line.startswith("cluster:4 ") and "[" in line)
    assert row.endswith("1.00"), "a row is one line"


@pytest.mark.parametrize(("width", "parts"), [(80, False), (120, True), (WIDE, True)])
def test_the_caption_explains_the_columns_that_are_shown(metrics: Any, width: int, parts: bool) -> None:
    shown = table(metrics, width)
    assert ("prefill" in [column.header for column in shown.columns]) == parts
    assert ("milliseconds" in str(shown.caption)) == parts
    assert "time: of whole calls, relative to dense." in str(shown.caption)


def test_times_of_an_interrupted_run_are_marked(metrics: Any) -> None:
    assert "interrupted" not in markdown(metrics)
    for row in metrics["configurations"]:
        row["time_ms"]["images"] = 1
    assert "times are from 1 of 4 images, measured in one go" in markdown(metrics)


def test_markdown_has_the_command(metrics: Any) -> None:
    text = markdown(metrics, "foveate bench --questions 4")
    assert text.count("| `cluster:4` |") == 2
    assert text.rstrip().endswith("foveate bench --questions 4\n```")


def test_plots_are_whole_or_not_there(metrics: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ["accuracy.pdf", "accuracy.png", "accuracy.svg"]
    assert sorted(each.name for each in plot(metrics, tmp_path / "accuracy.png")) == names
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    metrics["configurations"] = metrics["configurations"][:1]
    assert not plot(metrics, tmp_path / "none.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_plots_of_the_same_numbers_are_the_same_files_and_hold_text(metrics: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    metrics["task"] = "costs $5 \\frac{ and _x^2$\n"
    metrics["configurations"][1]["label"] = "a$b$ <c> & \ud800"
    once, twice = (plot(metrics, tmp_path / f"{name}.png") for name in ("once", "twice"))
    assert [each.read_bytes() for each in once] == [each.read_bytes() for each in twice]
    text = once[1].read_text()
    assert "Accuracy on costs $5 \\frac{ and _x^2$\\n: 8 questions" in text
    assert "a$b$ &lt;c&gt; &amp; \\ud800" in text
    assert b"CreationDate" not in once[2].read_bytes()


def test_who_loses_to_a_baseline_is_said() -> None:
    """Six images; of each, the method has nothing right and the baseline of its budget everything."""
    asked = (TaskQuestion("what ?", "red", None), TaskQuestion("where ?", "left", None))
    task = Task("hand", tuple(TaskImage(name, Path(name), asked) for name in "abcdef"), "")
    specs = {name_of(spec): spec for spec in configurations(["random:4", "cluster:4", "cluster:9"])}
    predictions = []
    for name in specs:
        for number in range(12):
            right = name in ("dense", "random:4") or number % 6 == 0
            question = asked[number % 2]
            said = (None, question.text, question.answer, question.answer if right else "no", right)
            predictions.append(Prediction(name, number, "abcdef"[number // 2], *said))
    spent = Spent(1.0, 1.0, 1.0, 1.0, 1.0, images=6, compressions=6, questions=12)
    metrics = measure(task, specs, predictions, [Part(name, 0, 96.0, 24.0, spent) for name in specs])
    rows = {row["spec"]: row for row in metrics["configurations"]}
    assert rows["cluster:4"]["against"]["random:4"]["value"] == pytest.approx(-10 / 12)
    assert rows["cluster:9"]["against"] == rows["random:4"]["against"] == rows["dense"]["against"] == {}
    (line,) = losses(metrics)
    assert line.startswith("cluster:4 is clearly below random:4 (-83.3 [")
    assert line in markdown(metrics)
