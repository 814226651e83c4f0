"""Prompts are built with the model's own chat template and processor, in one place for all who ask."""

from typing import Any

import pytest
import torch
from PIL import Image

from foveate import prompts
from foveate.errors import FoveateError
from foveate.loading import load_processor


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(None)


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (32, 32))


def test_a_question_about_one_image_or_two(processor: Any, image: Image.Image) -> None:
    one = prompts.question_inputs(processor, image, " what is it ? ")
    two = prompts.question_inputs(processor, [image, image], "what is it ?")
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert two["pixel_values"].shape[0] == 2 * one["pixel_values"].shape[0]
    assert (two["input_ids"] == placeholder).sum() == 2 * (one["input_ids"] == placeholder).sum() > 0


def test_ids_of_a_question_alone_are_those_of_its_text(processor: Any) -> None:
    messages = prompts.question_messages("what is it ?", images=0)
    ids = prompts.chat_ids(processor, messages)
    assert torch.equal(ids, prompts.processor_inputs(processor, prompts.chat_text(processor, messages))["input_ids"])
    (text,) = processor.batch_decode(ids)
    assert "what is it ?" in text


def test_a_beginning_of_text_is_written_once(processor: Any) -> None:
    text = prompts.chat_text(processor, prompts.question_messages("what is it ?", images=0))
    (ids,) = prompts.processor_inputs(processor, text)["input_ids"]
    assert (ids == processor.tokenizer.bos_token_id).sum() == 1


def test_a_tokenizer_that_would_write_it_again_is_told_not_to() -> None:
    told: list[dict[str, Any]] = []

    class Tokenizer:
        bos_token = "<s>"

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            told.append(options)
            return {"input_ids": [[0]]}

    class Processor:
        tokenizer = Tokenizer()

        def __call__(self, **options: Any) -> dict[str, Any]:
            told.append(options)
            return {"input_ids": [[0]]}

    for text in ("<s>what ?", "what ?"):
        prompts.processor_inputs(Processor(), text)
        prompts.tokenized(Processor(), text)
    assert [options.get("add_special_tokens", True) for options in told] == [False, False, True, True]


def test_a_conversation_with_its_answer_begins_with_its_prompt(processor: Any) -> None:
    messages = [*prompts.question_messages("what is it ?"), {"role": "assistant", "content": "a circle"}]
    text = prompts.chat_text(processor, messages, generation_prompt=False)
    assert text.startswith(prompts.chat_text(processor, messages[:1]))
    assert "a circle" in text


def test_what_is_refused(processor: Any, image: Image.Image) -> None:
    with pytest.raises(FoveateError, match="the question is empty; ask something"):
        prompts.question_inputs(processor, image, "  ")
    with pytest.raises(FoveateError, match="stands for the image in prompts; leave it out"):
        prompts.question_inputs(processor, image, f"what is {processor.image_token} ?")


def test_the_first_line_of_what_a_processor_says_is_told() -> None:
    class Processor:
        tokenizer = None

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise ValueError("no template.\nmore of it")

        def __call__(self, **_: Any) -> dict[str, Any]:
            raise ValueError("too narrow\nmore of it")

    for call in (prompts.chat_text, prompts.chat_ids):
        with pytest.raises(FoveateError, match=r"no usable chat template \(no template\)"):
            call(Processor(), prompts.question_messages("what ?"))
    with pytest.raises(FoveateError, match=r"^the model's processor refuses this image \(too narrow\)$"):
        prompts.processor_inputs(Processor(), "what ?")
    with pytest.raises(FoveateError, match=r"^row 3: the processor refuses it \(too narrow\)$"):
        prompts.processor_inputs(Processor(), "what ?", refusal="row 3: the processor refuses it")


@pytest.mark.parametrize("question", ["", " \n\t", "\u200b", "\ufeff \u2060", "\x00"])
def test_a_question_of_signs_that_nobody_sees_is_empty(question: str) -> None:
    with pytest.raises(FoveateError, match="the question is empty"):
        prompts.check_question(question)
