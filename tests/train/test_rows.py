"""Rows of training data: text is text, and whatever is no conversation is refused with its line before training."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import recipe

from foveate.errors import FoveateError
from foveate.train.objectives import parse_recipe
from foveate.train.prepared import prepare
from foveate.train.run import run


def asked(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "what is this ?", "answer": "a star", **changes}


def told(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def shown(*images: dict[str, Any]) -> dict[str, Any]:
    """Returns a row whose first turn has images as parts."""
    parts = [{"type": "image", **each} for each in images]
    return told(("user", [*parts, {"type": "text", "text": "q"}]), ("assistant", "a"))


LLAVA = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> Any:
    """Returns a recipe on rows of data."""
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")

    def make(*rows: Any, **changes: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        changes = {"stages": "single", "steps": 1, "batch": 1, "per_device": 1, **changes}
        return parse_recipe(recipe(tiny_model, data={"jsonl": str(path)}, **changes))

    return make


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            asked(answer=None),
            'needs "question" and "answer", or "messages", or "conversations"; null counts as left out',
        ),
        (asked(answer=True), '"answer" is True, which is no text'),
        (asked(answer={}), '"answer" is {}, which is no text'),
        (asked(answer=["a", "b"]), '"answer" is a list; training takes one text'),
        (asked(answer=" "), "a turn of the assistant is empty"),
        (asked(answer="<image>"), "image in a turn of the assistant"),
        (asked(question=None), 'needs "question" and "answer"'),
        (asked(image="b.png", images=None), "there is no image"),
        (asked(images=["a.png"]), 'has "images", and "image", which say the same thing twice; leave all but one out'),
        (
            asked(conversations=LLAVA),
            'has "conversations", and "question" and "answer", which say the same thing twice',
        ),
        (asked(**told(("user", "q"), ("assistant", "a"))), 'has "messages", and "question" and "answer"'),
        ({"image": "a.png", **shown({"path": "a.png"})}, 'images in "image" and paths in parts of its turns'),
        (shown({"path": "a.png"}, {}), "1 of the 2 images in its turns have a path; give each one a path"),
        (shown({"path": "b.png"}), "there is no image"),
        (shown({"path": ""}), '"path" holds no path and no picture'),
        (shown({"url": "https://x.org/a.png"}), 'has "url", which training doesn\'t read; write a path as "path"'),
        (shown({"image": "a.png"}), 'an image in its turns has "image", which'),
        (shown({}), '1 image placeholders and 0 images; paths belong in "images" of the row'),
        (asked(question=["q"]), "which is no text"),
        (asked(question=""), "a turn of the user is empty"),
        (asked(image=3), '"image" holds no path and no picture'),
        (asked(image=""), '"image" holds no path and no picture'),
        (asked(image=[None]), '"image" holds no path and no picture'),
        (asked(image="b.png"), "there is no image"),
        (asked(image="."), "there is no image"),
        (told(("assistant", "a")), "begins with a turn of the assistant"),
        (told(("user", "q")), "has no turn of the assistant"),
        (told(("user", None), ("assistant", "a")), "a turn of the user holds no text, but None"),
        (told(("user", "q"), ("assistant", "")), "a turn of the assistant is empty"),
        (told(("user", []), ("assistant", "a")), "a turn of the user is empty"),
        (told(("user", [{"type": "text", "text": None}]), ("assistant", "a")), "holds no text, but None"),
        (told(("user", [{"type": "video"}]), ("assistant", "a")), 'type "image" or "text", not \'video\''),
        (told(("user", [{"text": "q"}]), ("assistant", "a")), 'type "image" or "text", not None'),
        (told((["user"], "q"), ("assistant", "a")), "by user, assistant or system, not ['user']"),
    ],
)
def test_rows_that_are_no_conversation(given: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=r"rows\.jsonl, line 2") as caught:
        prepare(given(asked(), row))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["jsonl", "llava"])
def test_a_missing_file_names_its_key(tiny_model: Path, key: str) -> None:
    with pytest.raises(FoveateError, match=rf"data\.{key} names a file of conversations"):
        prepare(parse_recipe(recipe(tiny_model, data={key: "nope.json"})))


def test_null_is_absent(given: Any, tmp_path: Path) -> None:
    """Files of columns, such as exported datasets, have null where a row doesn't have a column."""
    nothing = dict.fromkeys(("image", "images", "question", "answer", "messages", "conversations"))
    llava = {**nothing, "image": "a.png", "conversations": LLAVA}
    rows = prepare(given({**nothing, **asked()}, {**nothing, "images": ["a.png"], **shown({"path": None})}, llava)).rows
    assert [row.images for row in (rows[0], rows[1], rows[2])] == [(tmp_path / "a.png",)] * 3


def test_paths_in_parts_are_the_rows_images(given: Any, tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "b.png")
    one = prepare(given(shown({"path": "b.png"}, {"path": "a.png"}))).rows[0]
    assert one.images == (tmp_path / "b.png", tmp_path / "a.png")
    assert one.messages[0]["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "q"}]


def test_numbers_are_answers(given: Any) -> None:
    rows = prepare(given(asked(answer=3), asked(answer=2.5))).rows
    assert [row.messages[1]["content"][0]["text"] for row in (rows[0], rows[1])] == ["3", "2.5"]


def test_prompts_beyond_the_models_room(given: Any, tmp_path: Path) -> None:
    """Refused with the line before training; cut where max_length asks for that, and never an image of it."""
    long = asked(answer="star " * 3000)
    with pytest.raises(FoveateError, match=r"line 1 has 3,\d+ tokens, and the model has room for 2,048"):
        run(given(long), tmp_path / "run", say=lambda _: None)
    with pytest.raises(FoveateError, match="max_length is 4,096, and the model has room for 2,048"):
        run(given(asked(), max_length=4096), tmp_path / "run", say=lambda _: None)
    with pytest.raises(FoveateError, match=r"its images need 36 tokens, and \d+ are left in the first 20 tokens"):
        run(given(asked(), max_length=20), tmp_path / "run", say=lambda _: None)
    assert not (tmp_path / "run" / "model").exists()
    run(given(long, max_length=100), tmp_path / "run", say=lambda _: None)
    assert (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_whoever_reads_it(given: Any, tmp_path: Path, workers: int) -> None:
    """Rows beyond the first eight are opened in training, by a process that reads data if there is one."""
    (tmp_path / "bad.png").write_bytes(b"")
    rows = [*[asked()] * 12, asked(image="bad.png")]
    with pytest.raises(FoveateError) as caught:
        run(given(*rows, batch=13, workers=workers), tmp_path / "run", say=lambda _: None)
    text = str(caught.value)
    assert f"{tmp_path / 'rows.jsonl'}, line 13: " in text
    assert "bad.png" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_folder_that_is_no_dataset(tiny_model: Path, name: str) -> None:
    with pytest.raises(FoveateError, match="it must be the name of a dataset on the Hugging Face hub"):
        prepare(parse_recipe(recipe(tiny_model, data={"dataset": name})))
