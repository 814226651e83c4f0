import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.bench.tasks import jsonl, scenes
from foveate.errors import FoveateError

GOOD = {"image": "a.png", "question": "what ?", "answer": "red"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "b.png")
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    file = folder / "questions.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_questions_are_gathered_by_image(folder: Path) -> None:
    file = write(folder, GOOD, {**GOOD, "image": "b.png", "skill": "colour"}, "", {**GOOD, "answer": 3})
    task = jsonl(file)
    assert [(picture.name, len(picture.questions)) for picture in task.pictures] == [("a.png", 2), ("b.png", 1)]
    assert task.pictures[0].questions[1].answer == "3"
    assert task.skills == ("colour",)
    assert jsonl(file, 2).questions == 2
    assert jsonl(file, 2).digest != task.digest == jsonl(file).digest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"image": "a.png", "question": "what ?"}, 'line 2: "answer" is missing'),
        ({**GOOD, "question": " "}, 'line 2: "question" is empty'),
        ({**GOOD, "answer": True}, 'line 2: "answer" is true; write text'),
        ({**GOOD, "skill": 3}, 'line 2: "skill"'),
        ({**GOOD, "image": "none.png"}, r"line 2: there is no image .*none\.png"),
    ],
)
def test_broken_lines(folder: Path, line: object, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        jsonl(write(folder, GOOD, line))


def test_broken_images(folder: Path) -> None:
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FoveateError, match=r"line 2: .*b\.png cannot be read"):
        jsonl(write(folder, GOOD, {**GOOD, "image": "b.png"}))
    (folder / "b.png").write_text("hello")
    with pytest.raises(FoveateError, match=r"line 2: .*b\.png is not an image"):
        jsonl(write(folder, GOOD, {**GOOD, "image": "b.png"}))


def test_empty_and_missing_files(folder: Path) -> None:
    with pytest.raises(FoveateError, match="holds no questions"):
        jsonl(write(folder, "", ""))
    with pytest.raises(FoveateError, match="no file"):
        jsonl(folder / "none.jsonl")
    for questions in (0, -3):
        with pytest.raises(FoveateError, match="asks nothing"):
            scenes(questions)


def test_a_huge_image_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.images.LIMIT", 20)
    with pytest.raises(FoveateError, match=r"too large: .* the limit is 20;"):
        jsonl(write(folder, GOOD))


def test_the_first_images_can_be_left_out(folder: Path) -> None:
    file = write(folder, GOOD, {**GOOD, "image": "b.png"}, GOOD)
    assert [picture.name for picture in jsonl(file, skip=1).pictures] == ["b.png"]
    assert jsonl(file, 1, skip=1).questions == 1
    with pytest.raises(FoveateError, match="has 2 images, and --skip leaves all of them out"):
        jsonl(file, skip=2)
    with pytest.raises(FoveateError, match="--skip -1"):
        jsonl(file, skip=-1)
    first, later = scenes(30), scenes(12, skip=1)
    assert later.questions == 12
    assert later.pictures[0].name == first.pictures[1].name
    assert later.digest != scenes(12).digest


def test_one_file_is_one_image_however_its_path_is_written(folder: Path) -> None:
    paths = ("a.png", "./a.png", f"../{folder.name}/a.png", str(folder / "a.png"))
    task = jsonl(write(folder, *({**GOOD, "image": path} for path in paths)))
    assert [(picture.name, len(picture.questions)) for picture in task.pictures] == [("a.png", 4)]
