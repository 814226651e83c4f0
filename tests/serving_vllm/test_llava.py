"""The embedded LLaVA in vLLM: its answers are those of transformers under `foveate.apply`, and caches know specs."""

from pathlib import Path
from typing import Any

import pytest
from engines import Question, ask_transformers, ask_vllm, compared, difference, engine, forget
from vllm import LLM

import foveate
from foveate.embedded import PATH
from foveate.scenes import scene

SPECS = (
    *("dense", "cluster:64", "cluster:20", "cls:16", "cls:0.25@features", "visionzip:64", "cls:144+cluster:32"),
    *("pool2d:144:positions=pack", "divprune:0.1"),
)
QUESTIONS = 12


@pytest.fixture(scope="module")
def reference() -> Any:
    return foveate.reference()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine(PATH, limit_mm_per_prompt={"image": 2})


def question(processor: Any, number: int, text: int = 0, images: int = 1) -> Question:
    shown = scene(number)
    content = [*[{"type": "image"}] * images, {"type": "text", "text": shown.questions[text].text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return Question(prompt, tuple(scene(number + each).image for each in range(images)))


def test_answers_are_those_of_transformers(llm: LLM, reference: Any, measured: dict[str, list[Any]]) -> None:
    model, processor = reference
    questions = [question(processor, number) for number in range(QUESTIONS)]
    rows = compared(llm, model, processor, questions, SPECS)
    measured["equality"] = [*measured.get("equality", []), *({"model": "LLaVA, embedded", **row} for row in rows)]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (QUESTIONS,) * 3, row
        assert row["difference"] < 1e-4, row


def test_two_images_of_a_prompt_have_one_spec(llm: LLM, reference: Any) -> None:
    model, processor = reference
    asked = question(processor, 0, images=2)
    (answer,) = ask_vllm(llm, [asked], ["cluster:64"])
    expected = ask_transformers(model, processor, asked, "cluster:64")
    assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
    assert difference(answer, expected) < 1e-4


def test_caches_know_specs(
    llm: LLM, reference: Any, measured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from foveate.vllm_plugin.llava import ServedLlava

    _, processor = reference
    encoder = ServedLlava._image_pixels_to_features
    runs: list[int] = []

    def counted(self: Any, tower: Any, pixels: Any) -> Any:
        runs.append(len(pixels))
        return encoder(self, tower, pixels)

    monkeypatch.setattr(ServedLlava, "_image_pixels_to_features", counted)
    forget(llm)
    plan = (
        ("a first request", 0, "cluster:64", False, True),
        ("the same again", 0, "cluster:64", True, False),
        ("the spec written in another way", 0, "cluster:64:start=stride", True, False),
        ("another spec with the same count", 0, "pool2d:64:positions=pack", False, True),
        ("another question about the image", 1, "cluster:64", None, False),
        ("no spec", 0, "dense", False, True),
        ("no spec again", 0, "dense", True, False),
    )
    rows, answers = [], {}
    for what, text, spec, hits, encodes in plan:
        runs.clear()
        (answer,) = ask_vllm(llm, [question(processor, 3, text)], [spec])
        rows.append({"request": what, "prompt": answer.prompt, "cached": answer.cached, "encoder": sum(runs)})
        assert bool(runs) == encodes, what
        if hits is not None:
            assert bool(answer.cached) == hits, what
        known = answers.setdefault((text, spec.removesuffix(":start=stride")), answer)
        assert known.tokens == answer.tokens
        assert difference(known, answer) < 1e-5, what
    measured["caches"] = rows


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("clutser:64", 'did you mean "cluster"'),
        ("cluster:9999", "keep at most 576"),
        ("stride:64", "write stride:64:positions=pack"),
        ("cdpruner:64", "reads the question"),
        ("prumerge:auto", "lets the content decide"),
        ("fastv:0.5@2", "acts inside the decoder"),
        ("tome:64@encoder", "runs the encoder as a whole"),
        ("resize:0.25", "has prepared the image by then"),
        ("cls:16:layer=-1", "loads the first 5"),
        (64, "is text such as"),
        ({"spec": "cluster:64"}, "is text such as"),
        ("", "an empty spec"),
    ],
)
def test_a_request_with_a_bad_spec_is_refused_and_the_next_one_answered(
    llm: LLM, reference: Any, spec: Any, reason: str
) -> None:
    _, processor = reference
    asked = question(processor, 1)
    with pytest.raises(ValueError, match=reason):
        ask_vllm(llm, [asked], [spec])
    (answer,) = ask_vllm(llm, [asked], ["cluster:64"])
    assert answer.tokens


def test_a_model_that_remembers_its_spec_is_served_with_it(tmp_path: Path, reference: Any) -> None:
    """`config.json` names the spec, as `model.config.foveate = {"spec": ...}` and `save_pretrained` write it."""
    model, processor = reference
    model.config.foveate = {"spec": "cluster:64"}
    try:
        model.save_pretrained(tmp_path)
    finally:
        del model.config.foveate
    processor.save_pretrained(tmp_path)
    asked = question(processor, 3)
    (answer,) = ask_vllm(engine(tmp_path), [asked], [None])
    expected = ask_transformers(model, processor, asked, "cluster:64")
    assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
    assert difference(answer, expected) < 1e-4
