"""Conversations become batches: labels where the assistant speaks, images whole, in every form that people use."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.loading import load_processor, skeleton
from foveate.scenes import scene
from foveate.train.batches import IGNORE, Batches, check_row
from foveate.train.recipe import Data
from foveate.train.settings import RecipeError
from foveate.train.sources import Conversation, Lines, Scenes, conversations, read_conversation


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> tuple[Any, Any]:
    return load_processor(tiny_model), family_of(skeleton(tiny_model))


def learned(processor: Any, row: dict[str, torch.Tensor]) -> list[str]:
    labels = row["labels"][0]
    return processor.tokenizer.convert_ids_to_tokens(labels[labels != IGNORE])


def test_only_what_the_assistant_says_is_learned(parts) -> None:
    processor, family = parts
    one = Scenes(3, turns=3)[1]
    row = Batches(processor, family).row(one)
    said = [m["content"][0]["text"] for m in one.messages if m["role"] == "assistant"]
    assert learned(processor, row) == [
        token for answer in said for token in (*processor.tokenizer.tokenize(answer), "<eos>")
    ]
    same = (row["labels"] == row["input_ids"]) | (row["labels"] == IGNORE)
    assert same.all()
    assert int((row["input_ids"] == family.image_token).sum()) == 36
    assert (row["labels"][row["input_ids"] == family.image_token] == IGNORE).all()


def test_rows_of_a_batch_are_the_rows_alone(parts) -> None:
    processor, family = parts
    make, rows = Batches(processor, family), Scenes(6, turns=4)
    picture = scene(9).image
    two = Conversation(
        "two",
        (picture, picture),
        ({"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "the same ?"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}),
    )  # fmt: skip
    text = read_conversation({"question": "what is a star ?", "answer": "a shape"}, "text", Path())
    listed = [rows[0], text, two, rows[3]]
    batch = make(list(enumerate(listed)))
    assert batch["rows"] == [0, 1, 2, 3]
    assert batch["pixel_values"].shape == (4, 3, 48, 48)
    for at, one in enumerate(listed):
        alone = make.row(one)
        length = alone["input_ids"].shape[1]
        assert batch["attention_mask"][at].sum() == length
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][at, :length], alone[name][0])
        assert (batch["labels"][at, length:] == IGNORE).all()
    assert batch["tokens"] == batch["attention_mask"].sum()


def test_cutting_keeps_images_whole_or_says_so(parts) -> None:
    processor, family = parts
    one = Scenes(1, turns=8)[0]
    whole = Batches(processor, family).row(one)
    cut = Batches(processor, family, 60).row(one)
    assert cut["input_ids"].shape == cut["labels"].shape == cut["attention_mask"].shape == (1, 60)
    assert torch.equal(cut["input_ids"][0], whole["input_ids"][0, :60])
    with pytest.raises(FoveateError, match=r"scene 0: its images need 36 tokens, and 2\d are left in the first 30"):
        Batches(processor, family, 30).row(one)
    with pytest.raises(FoveateError, match=r"no answer is left in the first 40 tokens"):
        Batches(processor, family, 40).row(one)


def test_labels_that_do_not_fit_are_named() -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(FoveateError, match="row 4: 2 labels for 3 tokens"):
        check_row({"input_ids": ids, "labels": ids[:, :2]}, 9, 0, "row 4")
    with pytest.raises(FoveateError, match="need 5 tokens, and 0 are left"):
        check_row({"input_ids": ids, "labels": ids}, 9, 5, "row 4")


def test_three_ways_to_write_a_conversation(tmp_path: Path) -> None:
    scene(1).image.save(tmp_path / "a.png")
    answer, llava = "star", "<image>\nwhat ?"
    forms = [
        {"image": "a.png", "question": "what ?", "answer": "star"},
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": answer}],
        },
        {"image": "a.png", "conversations": [{"from": "human", "value": llava}, {"from": "gpt", "value": answer}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(form) for form in forms))
    rows = Lines(path)
    assert [rows.name(i) for i in range(3)] == ["line 1", "line 3", "line 5"]
    assert rows[0].messages == rows[1].messages == rows[2].messages
    assert all(one.pictures()[0].size == (192, 192) for one in (rows[0], rows[1], rows[2]))
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(forms))
    assert len(Lines(listed)) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"image": "b.png", "question": "?", "answer": "a"}', "there is no image"),
        ('{"question": "?"}', 'needs "question" and "answer"'),
        ('{"messages": [{"role": "user", "content": "?"}]}', "nothing to learn"),
        ('{"messages": [{"role": "robot", "content": "?"}]}', "not 'robot'"),
        ('{"messages": {"role": "user"}}', "is a list of turns"),
        ('{"question": "<image> ?", "answer": "a"}', "has 1 image placeholders and 0 images"),
        ('{"image": 3, "question": "?", "answer": "a"}', "no path and no picture"),
    ],
)
def test_broken_lines_are_told_by_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "what ?", "answer": "star"}\n' + line)
    with pytest.raises(FoveateError) as caught:
        Lines(path)
    assert message in str(caught.value)


def test_a_broken_picture_is_told_with_its_line(tmp_path: Path, parts) -> None:
    (tmp_path / "a.png").write_text("no picture")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a.png", "question": "what ?", "answer": "star"}')
    with pytest.raises(FoveateError, match=r"line 1: .*is not an image"):
        Batches(*parts).row(Lines(path)[0])


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [scene(i).image for i in range(2)]
    made = datasets.Dataset.from_dict({"image": pictures, "question": ["a ?", "b ?"], "answer": ["x", "y"]})
    made.save_to_disk(tmp_path / "set")
    rows = conversations(Data(dataset=str(tmp_path / "set")))
    assert len(rows) == 2
    assert rows.name(1) == "row 1"
    assert isinstance(rows[1].images[0], Image.Image)
    assert rows[1].messages[1]["content"][0]["text"] == "y"
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(FoveateError, match='needs "question" and "answer"'):
        conversations(Data(dataset=str(tmp_path / "other")))
    with pytest.raises(RecipeError, match="it must be the name of a dataset"):
        conversations(Data(dataset=str(tmp_path / "set" / "data-00000-of-00001.arrow")))


def edited_lines(folder: Path) -> Callable[..., dict[str, str]]:
    scene(0).image.save(folder / "0.png")

    def fingerprint(answer: str = "a cat") -> dict[str, str]:
        (folder / "rows.jsonl").write_text(json.dumps({"image": "0.png", "question": "what ?", "answer": answer}))
        return dict(conversations(Data(jsonl=str(folder / "rows.jsonl"))).fingerprint)

    return fingerprint


def edited_dataset(folder: Path) -> Callable[..., dict[str, str]]:
    datasets = pytest.importorskip("datasets")
    scene(0).image.save(folder / "0.png")

    def fingerprint(answer: str = "a cat", column: str = "image", paths: Any = "0.png") -> dict[str, str]:
        made = datasets.Dataset.from_dict({column: [paths], "question": ["what ?"], "answer": [answer]})
        shutil.rmtree(folder / "set", ignore_errors=True)
        made.save_to_disk(folder / "set")
        return dict(conversations(Data(dataset=str(folder / "set"), images=str(folder))).fingerprint)

    return fingerprint


@pytest.mark.parametrize("kind", [edited_lines, edited_dataset])
def test_a_fingerprint_tells_what_has_changed(tmp_path: Path, kind: Callable[..., Any]) -> None:
    fingerprint = kind(tmp_path)
    before = fingerprint()
    assert fingerprint() == before
    other = fingerprint("a star")
    assert other.keys() == before.keys() == {"conversations", "image files"}
    assert other["conversations"] != before["conversations"]
    assert other["image files"] == before["image files"]
    scene(1).image.save(tmp_path / "0.png")
    os.utime(tmp_path / "0.png", ns=(1, 1))
    other = fingerprint()
    assert other["conversations"] == before["conversations"]
    assert other["image files"] != before["image files"]


def test_a_fingerprint_of_lists_of_images_and_of_pictures(tmp_path: Path) -> None:
    fingerprint = edited_dataset(tmp_path)
    several = fingerprint(column="images", paths=["0.png", "0.png"])
    inside = fingerprint(paths=scene(0).image)
    os.utime(tmp_path / "0.png", ns=(1, 1))
    assert fingerprint(column="images", paths=["0.png", "0.png"])["image files"] != several["image files"]
    assert fingerprint(paths=scene(0).image) == inside
    with pytest.raises(FoveateError, match=r"row 0: there is no image .*9\.png"):
        fingerprint(paths="9.png")
    assert not Scenes(4).fingerprint


def test_a_fingerprint_knows_images_of_every_column(tmp_path: Path) -> None:
    """One row may have its path under image, one in a list, and one in a part of its messages."""
    datasets = pytest.importorskip("datasets")
    content = [{"type": "image", "path": "2.png", "text": None}, {"type": "text", "path": None, "text": "what ?"}]
    answer = [{"type": "text", "path": None, "text": "a cat"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    asked = {"question": ["what ?", "what ?", None], "answer": ["a cat", "a cat", None]}
    listed = {"image": ["0.png", None, None], "images": [None, ["1.png"], None], "messages": [None, None, turns]}
    datasets.Dataset.from_dict({**asked, **listed}).save_to_disk(tmp_path / "set")
    for name in range(3):
        scene(name).image.save(tmp_path / f"{name}.png")
    data = Data(dataset=str(tmp_path / "set"), images=str(tmp_path))
    found = [dict(conversations(data).fingerprint)]
    assert [conversations(data)[at].images for at in range(3)] == [(tmp_path / f"{at}.png",) for at in range(3)]
    for name in range(3):
        os.utime(tmp_path / f"{name}.png", ns=(1, 1))
        found.append(dict(conversations(data).fingerprint))
    assert len({one["image files"] for one in found}) == 4


def test_every_scene_has_turns_and_begins_differently() -> None:
    rows = Scenes(12, turns=3, first=5)
    assert rows.name(0) == "scene 5"
    assert all(len(one.messages) == 6 for one in (rows[i] for i in range(12)))
