"""Tasks that papers report, each on five rows that we wrote in its format."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.bench import Benchmark, Columns, DatasetTask, Task, published, read_task, task_called
from foveate.bench.hugging_face import read_columns
from foveate.bench.scoring import scoring_of
from foveate.errors import FoveateError

datasets = pytest.importorskip("datasets")

SAMPLES = Path(__file__).parent / "samples"
PICTURE_KEYS = {"gqa": "imageId", "textvqa": "image_id", "pope": "image_source", "mme": "question_id"}
"""Rows that have the same of these have the same picture."""

FIRST = {
    "gqa": ("Is the cup left of the plate?", ("yes",), None, "20100"),
    "textvqa": ("what does the sign say?", ("stop",) * 9 + ("stop sign",), None, "34600"),
    "pope": ("Is there a dog in the image?", ("yes",), "random", "0"),
    "mme": ("Are there two cups?", ("Yes",), "count", None),
    "mmbench": ("Which is taller?\nA. tower\nB. tree", ("A",), "attribute", "7"),
    "scienceqa": ("Which is colder?\nA. ice\nB. steam", ("ice",), "natural science", None),
    "vqav2": ("What is he holding?", ("bat",) * 8 + ("baseball bat",) * 2, "other", "42000"),
    "vizwiz": ("What is this?", ("soup",) * 6 + ("can of soup",) * 4, "other", "VizWiz_val_0.jpg"),
    "docvqa": ("What is the date?", ("1/8/93", "January 8, 1993"), None, "300"),
    "infovqa": ("How many use it daily?", ("40%",), None, "70"),
    "chartqa": ("What is the largest bar?", ("42",), "human_test", None),
    "ocrbench": ("what is written in the image?", ("CENTRE",), "Regular Text Recognition", None),
    "seedbench": ("How many towels?\nA. One\nB. Two\nC. Three\nD. Four", ("A",), "5", "900"),
}
COUNTS = {"gqa": (3, 5), "textvqa": (4, 5), "pope": (3, 5), "mme": (3, 5), "vqav2": (3, 5), "docvqa": (3, 5)}
"""Images and questions, where they aren't 5 and 5."""
COUNTS |= {"seedbench": (4, 4)}


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (colour * 20, 90, 200)).save(file, "PNG")
    return file.getvalue()


def rows_of(name: str, image: Any = None) -> list[dict[str, Any]]:
    """The sample of a task with pictures, the same one where its questions are about one."""
    rows = [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text().splitlines()]
    key = PICTURE_KEYS.get(name)
    for number, row in enumerate(rows):
        picture = {"bytes": png([each.get(key) for each in rows].index(row.get(key)) if key else number), "path": None}
        row["image"] = [picture] if name == "seedbench" else picture
    return rows


def saved(rows: list[dict[str, Any]], folder: Path, column: str = "image") -> Path:
    made = datasets.Dataset.from_list(rows)
    if column in made.column_names:
        feature = datasets.Image()
        several = isinstance(rows[0][column], list)
        made = made.cast_column(column, datasets.List(feature) if several else feature)
    made.save_to_disk(str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_every_task_has_a_sample() -> None:
    assert set(published()) == set(FIRST) == {each.stem for each in SAMPLES.glob("*.jsonl")}


@pytest.mark.parametrize("name", sorted(set(FIRST) - {"gqa"}))
def test_rows_become_questions(name: str, tmp_path: Path) -> None:
    source = task_called(name)
    task = read_task(source, folder=saved(rows_of(name), tmp_path / name))
    check(task, name)


def check(task: Task, name: str) -> None:
    source = task_called(name)
    assert (task.name, task.prompt, task.score, task.longest) == (name, source.prompt, source.score, source.longest)
    assert (len(task.pictures), task.questions) == COUNTS.get(name, (5, 5))
    first = task.pictures[0].questions[0]
    assert (first.text, first.answers, first.skill, first.id) == FIRST[name]
    assert task.pictures[0].load().size == (32, 24)
    every = [asked for picture in task.pictures for asked in picture.questions]
    scoring = scoring_of(task.score).ready(asked.response() for asked in every)
    # What most people say is right, and what nobody says isn't.
    best = [max(asked.answers, key=asked.answers.count) for asked in every]
    assert [scoring.score(asked.response(said)) for asked, said in zip(every, best, strict=True)] == [1] * len(every)
    assert [scoring.score(asked.response("zebra crossing")) for asked in every] == [0] * len(every)


def test_pictures_may_be_apart(tmp_path: Path) -> None:
    """GQA has its pictures in another subset; this is its folder as the hub has it."""
    rows, parts = rows_of("gqa"), {}
    parts["testdev_balanced_images"] = [
        {"id": f"n{number}", "image": rows[2 * number - 2]["image"]} for number in (1, 2, 3)
    ]
    parts["testdev_balanced_instructions"] = [{k: v for k, v in row.items() if k != "image"} for row in rows]
    folder = tmp_path / "GQA"
    readme = "---\nconfigs:\n"
    for name, own in parts.items():
        made = datasets.Dataset.from_list(own)
        if "image" in own[0]:
            made = made.cast_column("image", datasets.Image())
        (folder / name).mkdir(parents=True)
        made.to_parquet(str(folder / name / "testdev-00000-of-00001.parquet"))
        readme += f"- config_name: {name}\n  data_files:\n  - split: testdev\n    path: {name}/testdev-*\n"
    (folder / "README.md").write_text(readme + "---\n")
    task = read_task(task_called("gqa"), folder=folder)
    check(task, "gqa")
    assert [picture.name for picture in task.pictures] == ["n1", "n2", "n3"]
    assert [picture.name for picture in read_task(task_called("gqa"), 3, 1, folder=folder).pictures] == ["n2", "n3"]


def mine(folder: Path, **columns: str) -> Task:
    return read_task(DatasetTask("mine", str(folder), columns=Columns(**columns)))


def test_a_dataset_with_other_columns(tmp_path: Path) -> None:
    rows = [
        {
            "picture": {"bytes": png(n), "path": None},
            "query": f"{n} ?",
            "label": n,
            "kind": "k",
            "one": "cat",
            "two": "dog",
        }
        for n in (0, 1, 0)
    ]
    folder = saved(rows, tmp_path / "mine", "picture")
    columns = read_columns("image=picture,question=query,answers=label,choices=one/two,skill=kind")
    task = read_task(DatasetTask("mine", str(folder), columns=columns))
    # Pictures with the same bytes are one.
    assert [len(picture.questions) for picture in task.pictures] == [2, 1]
    assert task.pictures[1].questions[0].answers == ("dog",)
    assert mine(folder, image="picture", question="query", answer="label").pictures[1].questions[0].answers == ("1",)


def test_pictures_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"image": "a.png", "question": "what ?", "answers": ["red", 3]}) + "\n"
    )
    task = mine(tmp_path)
    assert task.pictures[0].load().size == (32, 24)
    assert task.pictures[0].questions[0].answers == ("red", "3")


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"question": "query"}, r'has no column "query" for the question; it has image, question, answer, id: say'),
        ({"answer": ""}, {}, 'row 0: "answer" is empty; splits whose answers are not published'),
        ({"question": " "}, {}, 'row 0: "question" is empty'),
        ({}, {"id": "id"}, r'row 1 has the id "7" of row 0; each question needs its own'),
        ({"image": None}, {}, r'row 0: "image" holds no picture'),
        ({"image": {"bytes": b"text", "path": None}}, {}, r"row 0, is not an image"),
    ],
)
def test_rows_that_cannot_be_read(
    change: dict[str, Any], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    row = {"image": {"bytes": png(1), "path": None}, "question": "what ?", "answer": "red", "id": 7}
    folder = saved([{**row, **change}, row], tmp_path / "bad")
    with pytest.raises(FoveateError, match=message):
        mine(folder, **columns).pictures[0].load()


def test_datasets_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    some = datasets.Dataset.from_dict({"image": ["a.png"], "question": ["what ?"], "answer": ["red"]})
    some.select([]).to_parquet(str(tmp_path / "empty" / "test.parquet"))
    with pytest.raises(FoveateError, match="is empty; choose another split"):
        mine(tmp_path / "empty")
    both = datasets.DatasetDict({"val": some, "test": some})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(FoveateError, match="has the splits val, test; choose one with --split"):
        mine(tmp_path / "both")
    with pytest.raises(FoveateError, match="has the splits val, test and no train"):
        read_task(DatasetTask("mine", str(tmp_path / "both"), split="train"))
    with pytest.raises(FoveateError, match="no folder"):
        mine(tmp_path / "none")
    with pytest.raises(FoveateError, match=r'--columns: "question" names no column'):
        read_columns("question")


def test_a_task_is_asked_and_scored_in_its_own_way(model, processor, tmp_path: Path) -> None:
    folder = saved(rows_of("pope"), tmp_path / "pope")
    made = Benchmark(model, processor, read_task(task_called("pope"), folder=folder), ["cluster:4"], tmp_path / "out")
    metrics = made.run()
    assert metrics["prompt"] == task_called("pope").prompt
    assert metrics["scoring"]["name"] == "yes-no"
    assert set(metrics["configurations"][0]["figures"]) == {"precision", "recall", "F1", "yes"}
    first = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["id"] == "0"
    assert "precision" in (tmp_path / "out" / "table.md").read_text()
