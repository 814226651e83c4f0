"""`foveate.bulk.Answer` and `Compress` on columns: in a loop, in `datasets`, in other processes; broken rows."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.bulk import Answer, Compress, features_of
from foveate.bulk.columns import ids_of
from foveate.errors import FoveateError, SpecError
from foveate.prompts import question_inputs
from foveate.scenes import scene

SCENES = [scene(number) for number in range(3, 7)]


def asked() -> dict[str, list[Any]]:
    """Two questions about each of four scenes."""
    rows = [(each.image, question.text) for each in SCENES for question in each.questions[:2]]
    return {"image": [image for image, _ in rows], "question": [question for _, question in rows]}


@pytest.fixture(scope="module")
def answer() -> Answer:
    return Answer("cluster:64", max_new_tokens=6, batch=4)


def test_answers_are_those_of_apply(answer: Answer) -> None:
    columns = asked()
    made = answer(columns)
    model, processor = foveate.load()
    for image, question, text in zip(columns["image"], columns["question"], made["answer"], strict=True):
        inputs = question_inputs(processor, image, question)
        with torch.no_grad(), foveate.apply(model, "cluster:64"):
            ids = model.generate(**inputs, max_new_tokens=6)
        right = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert text.strip() == right
    assert made["visual_tokens"] == [64] * 8
    assert made["visual_tokens_dense"] == [576] * 8
    assert made["error"] == [""] * 8
    assert set(made["spec"]) == {"cluster:64"}
    assert len(set(made["id"])) == 8


def test_images_in_every_form_and_broken_rows(answer: Answer, tmp_path: Path) -> None:
    picture, question = SCENES[0].image, SCENES[0].questions[0].text
    path = tmp_path / "scene.png"
    picture.save(path)
    content = path.read_bytes()
    forms: list[Any] = [str(path), path, content, {"bytes": content, "path": None}, {"bytes": None, "path": str(path)}]
    forms += [picture, picture.convert("RGBA"), np.asarray(picture)]
    broken: list[Any] = [None, 7, "gone.png", b"GIF89a", np.zeros((4, 4, 7), np.uint8), {"path": None}]
    columns = {"image": [*forms, *broken, str(path), path], "question": [question] * (len(forms) + 6) + ["", None]}
    made = answer(columns)
    assert len({*made["answer"][: len(forms)]}) == 1
    assert made["error"][: len(forms)] == [""] * len(forms)
    for error, words in zip(
        made["error"][len(forms) :],
        (
            "not None",
            "not 7",
            "there is no image gone.png",
            "the content is not an image",
            "no image; give",
            "not None",
            "the question is empty",
            "a question is text, not None",
        ),
        strict=True,
    ):
        assert words in error
    assert made["answer"][len(forms) :] == [""] * 8


def test_what_a_spec_can_not_do_with_one_image_is_an_error_of_its_rows(tmp_path: Path) -> None:
    work = Answer("cluster:577", max_new_tokens=2)
    made = work({"image": [SCENES[0].image, SCENES[1].image], "question": ["what ?"] * 2})
    assert all("577" in error for error in made["error"])


def test_features_are_those_of_compress() -> None:
    made = Compress("cluster:16", features_dtype="float32")(
        {"image": [each.image for each in SCENES], "id": [1, 2, 3, 4]}
    )
    assert made["id"] == ["1", "2", "3", "4"]
    model, processor = foveate.load()
    rows = [dict(zip(made, cells, strict=True)) for cells in zip(*made.values(), strict=True)]
    for each, row in zip(SCENES, rows, strict=True):
        expected = foveate.compress(model, question_inputs(processor, each.image, "?"), "cluster:16").images[0].features
        torch.testing.assert_close(features_of(row), expected, atol=1e-5, rtol=1e-5)
    half = Compress("cluster:16")({"image": [SCENES[0].image]})
    assert len(half["features"][0]) == 16 * 192 * 2
    with pytest.raises(FoveateError, match="row 1 has no features: gone"):
        features_of({"id": "1", "error": "gone"})
    with pytest.raises(FoveateError, match="no row of Compress"):
        features_of({"id": "1"})


def test_datasets_map(answer: Answer) -> None:
    from datasets import Dataset

    columns = asked()
    table = Dataset.from_dict({"image": [str(number // 2) for number in range(8)], "question": columns["question"]})
    images = {str(number): each.image for number, each in enumerate(SCENES)}

    def work(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return answer({"image": [images[name] for name in rows["image"]], "question": rows["question"]})

    made = table.map(work, batched=True, batch_size=8)
    assert made["answer"] == answer(columns)["answer"]


def test_it_is_sent_to_other_processes_without_its_model(answer: Answer) -> None:
    columns = asked()
    answer(columns)
    sent = pickle.dumps(answer)
    assert len(sent) < 1000
    assert pickle.loads(sent).spec == "cluster:64"


def test_ids() -> None:
    image = Image.new("RGB", (4, 4))
    same = ids_of({"image": [image, np.zeros((4, 4, 3), np.uint8)]}, ["image"])
    assert same[0] == same[1]
    assert ids_of({"image": ["a", b"a", {"path": "a"}], "question": ["b"] * 3}, ["image", "question"])[0] != same[0]
    assert ids_of({"image": ["ab"], "question": ["c"]}, ["image", "question"]) != ids_of(
        {"image": ["a"], "question": ["bc"]}, ["image", "question"]
    )
    with pytest.raises(FoveateError, match="there is no column question, but image"):
        ids_of({"image": ["a"]}, ["image", "question"])
    with pytest.raises(FoveateError, match="columns differ in length"):
        ids_of({"image": ["a"], "question": []}, ["image", "question"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Answer("clutser:64"), "did you mean"),
        (lambda: Answer("cluster:64", batch=0), "batch"),
        (lambda: Answer("cluster:64", max_new_tokens=0), "max_new_tokens"),
        (lambda: Compress("pool:0.5@2"), "acts inside the decoder"),
        (lambda: Compress("cdpruner:8"), "reads the question"),
        (lambda: Compress("cluster:8", features_dtype="int8"), "float16 or bfloat16 or float32"),
        (lambda: Answer("cluster:64@features", model="/nowhere/model").asker, "there is no model"),
        (lambda: Answer("fastv:0.5@99").asker, "99"),
    ],
)
def test_what_is_refused_before_any_row(make: Any, words: str) -> None:
    with pytest.raises((FoveateError, SpecError), match=words):
        make()
