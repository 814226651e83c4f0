import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foveate.bench.answers import Spent
from foveate.bench.configurations import configurations, name_of
from foveate.bench.metrics import difference_of, measure, metrics_text
from foveate.bench.plot import plot
from foveate.bench.report import FULL, WIDE, losses, markdown, skills_table, table
from foveate.bench.results import Part, Prediction
from foveate.bench.tasks import Task, TaskImage, TaskQuestion
from foveate.commands.screen import Screen


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


@pytest.mark.parametrize("width", [16, 40, 60, 80])
def test_rows_can_be_told_apart_in_a_narrow_terminal(metrics: Any, width: int) -> None:
    names = ["sparsevlm-plus:0.3333@1,3,6", "sparsevlm-plus:0.3333@1,3,7", "sparsevlm-plus:0.3334@1,3,6"]
    for row, name in zip(metrics["configurations"][1:], names, strict=True):
        row["spec"] = name
    screen = Screen(width=width, record=True, file=io.StringIO())
    screen.print(table(metrics, width))
    screen.print(skills_table(metrics))
    text = screen.export_text()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    if width <= 60:
        # One block per row: names are whole, over two lines where they must be.
        assert all("".join(text.split()).count(name) >= 1 for name in names)


def test_texts_of_users_are_shown_as_they_are(metrics: Any) -> None:
    skills = {"colour": "[red] [/] | :smile: <b>", "place": "two\nlines \x1b[31m\u2028 \ud800"}
    for row in metrics["configurations"]:
        row["skills"] = {skills[name]: own for name, own in row["skills"].items()}
    metrics["floor"] = {"overall": 0.25, **{name: metrics["floor"][old] for old, name in skills.items()}}
    metrics["task"] = "[bold]q[/]|\nx"
    metrics["configurations"][3]["spec"] = "atp:adapter=a|b[/]:0.5"
    for screen in (
        Screen(width=140, record=True, file=io.StringIO()),
        Console(width=140, record=True, file=io.StringIO()),
    ):
        screen.print(table(metrics))
        screen.print(skills_table(metrics))
        text = screen.export_text()
        assert "[red] [/] | :smile: <b>" in text
        assert "two lines \\x1b[31m" in text or "two\\nlines \\x1b[31m\\u2028 \\ud800" in text
        assert "[bold]q[/]|\\nx: 8 questions" in text
        assert "atp:adapter=a|b[/]:0.5" in text
    text = markdown(metrics, "foveate bench --data '```'")
    assert "[red] [/] \\| :smile: &lt;b>" in text
    assert "`atp:adapter=a\\|b[/]:0.5`" in text
    assert "\n````\nfoveate bench --data '```'\n````\n" in text
    counts = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert counts == {4, 13}
    assert "\u2028" not in text


def test_differences_to_any_row(metrics: Any) -> None:
    names = [row["spec"] for row in metrics["configurations"]]
    for one in names:
        for other in names:
            found, back = (difference_of(metrics, *pair) for pair in ((one, other), (other, one)))
            if one == other:
                assert found is None
                continue
            assert found is not None
            assert back is not None
            assert (found["value"], found["low"], found["changed"]) == (-back["value"], -back["high"], back["changed"])
    shown = table(metrics, WIDE, "random:4")
    column = next(each for each in shown.columns if each.header == "Δ")
    assert [str(cell) for cell in column.cells] == ["+50.0", "", "+25.0", "", "", "+25.0"]
    assert "paired with random:4" in str(shown.caption)
    written = metrics_text(metrics)
    assert json.loads(written) == json.loads(json.dumps(metrics))
    assert '"random:4": [0.25, ' in written


def test_rows_without_a_change_say_so(metrics: Any) -> None:
    """Not `0.0 [-52.8, +52.8]`, which looks like noise: what an interval of so few images means is in the caption."""
    row = metrics["configurations"][3]
    row["difference"] = {"value": 0.0, **{"low": -0.5272, "high": 0.5272}, "changed": 0}
    text = markdown(metrics)
    assert "| 0.0 unchanged |" in text
    assert "can't rule out a change of up to ±52.8 points" in text


@pytest.mark.parametrize(("low", "clearly"), [(-0.0004, False), (-0.00051, False), (-0.001, True), (0.0, False)])
def test_clearly_is_said_only_where_the_printed_interval_leaves_zero_out(low: float, clearly: bool) -> None:
    row = {"spec": "a", "baseline": False, "against": {"b": {"value": -0.05, "low": -0.14, "high": low}}}
    (line,) = losses({"configurations": [row]}) or [""]
    assert bool(line) == clearly
    assert "0.0]" not in line


@pytest.mark.parametrize("images", [1, 2])
def test_one_or_two_images_have_no_intervals(metrics: Any, images: int) -> None:
    metrics["images"] = images
    for row in metrics["configurations"]:
        for each in (row["accuracy"], row["difference"] or {}, *row["against"].values()):
            each.update(low=None, high=None)
    text = markdown(metrics)
    assert f"{images} image{'s are' if images > 1 else ' is'} too few for intervals." in text
    assert "[" not in text
    assert not losses(metrics)


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


@pytest.mark.parametrize("label", ["x", "cluster:64:start=plusplus@input", "pool:0.25@2+" * 40])
@pytest.mark.parametrize("rows", [2, 4])
def test_names_of_lines_stand_inside_the_figure(
    metrics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, rows: int
) -> None:
    pytest.importorskip("matplotlib")
    outside: list[str] = []

    def look(figure: Any, file: Path) -> None:
        figure.canvas.draw()
        for text in figure.axes[0].texts:
            box = text.get_window_extent()
            if box.x1 > figure.bbox.x1 or box.x0 < 0:
                outside.append(text.get_text())

    monkeypatch.setattr("foveate.plots.save", look)
    metrics["configurations"] = metrics["configurations"][:rows]
    metrics["configurations"][1]["label"] = label
    plot(metrics, tmp_path / "accuracy.png")
    assert not outside


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
