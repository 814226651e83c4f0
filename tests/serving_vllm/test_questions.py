"""Methods that read the question, where the server is told to encode an image for each: no cache mixes questions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_qwen
from engines import Question, ask_vllm, compared, difference, engine, forget
from vllm import LLM

import foveate
from foveate.embedded import PATH
from foveate.scenes import scene

SPECS = ("cdpruner:64", "cdpruner:16", "cdpruner:100:relevance=like+cluster:0.3", "cluster:64")


@pytest.fixture(autouse=True, scope="module")
def per_question() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FOVEATE_PER_QUESTION", "1")
        # The spec of the server, too: vLLM fills a server before it serves, without any question.
        patched.setenv("FOVEATE_SPEC", "cdpruner:64")
        yield


@pytest.fixture(scope="module")
def reference() -> Any:
    return foveate.reference()


@pytest.fixture(scope="module")
def llm(per_question: None) -> LLM:
    return engine(PATH, limit_mm_per_prompt={"image": 2})


def question(processor: Any, number: int, text: int, images: int = 1) -> Question:
    shown = scene(number)
    content = [*[{"type": "image"}] * images, {"type": "text", "text": shown.questions[text].text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return Question(prompt, tuple(scene(number + each).image for each in range(images)))


def test_answers_are_those_of_transformers(llm: LLM, reference: Any, measured: dict[str, list[Any]]) -> None:
    model, processor = reference
    questions = [question(processor, number, text) for number in (3, 8) for text in range(2)]
    questions.append(question(processor, 3, 1, images=2))
    rows = compared(llm, model, processor, questions, SPECS)
    named = ({"model": "LLaVA, embedded, per question", **row} for row in rows)
    measured["equality"] = [*measured.get("equality", []), *named]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row


def test_no_cache_gives_one_question_what_another_left(llm: LLM, reference: Any) -> None:
    _, processor = reference
    forget(llm)
    asked = [question(processor, 3, text) for text in range(2)]
    alone = []
    for each in asked:
        forget(llm)
        alone += ask_vllm(llm, [each], [None])
    forget(llm)
    first, again, other, read = (ask_vllm(llm, [asked[number]], ["cdpruner:64"])[0] for number in (0, 0, 1, 0))
    assert (first.cached, other.cached) == (0, 0)
    assert again.cached >= 32
    assert read.cached >= 32
    for answer, expected in ((first, alone[0]), (again, alone[0]), (other, alone[1]), (read, alone[0])):
        assert answer.tokens == expected.tokens
        assert difference(answer, expected) < 1e-5
    # A method that reads the image alone goes on to share it.
    whole = [ask_vllm(llm, [each], ["cluster:64"])[0] for each in asked]
    assert whole[1].cached >= 32


def test_answers_of_a_qwen(per_question: None, tmp_path: Path, measured: dict[str, list[Any]]) -> None:
    model, processor = test_qwen.saved(test_qwen.qwen3_vl, tmp_path)
    llm = engine(tmp_path, limit_mm_per_prompt={"image": 2, "video": 1})
    pictures = test_qwen.question(0).images
    questions = [Question(test_qwen.question(number).prompt, pictures) for number in range(3)]
    questions.append(test_qwen.question(7, images=2))
    rows = compared(llm, model, processor, questions, ("cdpruner:6", "cdpruner:0.4+cluster:0.5", "cluster:6"))
    named = ({"model": "Qwen3-VL, tiny, per question", **row} for row in rows)
    measured["equality"] = [*measured.get("equality", []), *named]
    for row in rows:
        assert (row["single"], row["batch"], row["mixed"]) == (len(questions),) * 3, row
        assert row["difference"] < 1e-4, row
    with pytest.raises(ValueError, match="which text the processor writes between the frames"):
        ask_vllm(llm, [test_qwen.question_about_a_clip(0)], ["cdpruner:3"])
    assert ask_vllm(llm, [test_qwen.question_about_a_clip(0)], ["cluster:3"])[0].tokens
