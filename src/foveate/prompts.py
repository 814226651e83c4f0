"""Build chat prompts: messages, text by the model's chat template, and the processor's inputs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Int64

from foveate.chat_template import no_template, render
from foveate.errors import FoveateError, first_line

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = [
    "Message",
    "chat_ids",
    "chat_text",
    "check_chat_template",
    "check_prompt",
    "check_question",
    "processor_inputs",
    "question_inputs",
    "question_messages",
    "question_text",
    "special_tokens",
    "tokenized",
]

Message = Mapping[str, Any]
"""A message as chat templates take it: `role`, and `content` as a list of parts."""


def check_question(question: str) -> str:
    """Return the question without white space around it.

    Raises:
        FoveateError: the question is empty, or holds bytes that are no text.

    >>> check_question(" what colour is the circle ? ")
    'what colour is the circle ?'
    """
    if (bad := re.search("[\ud800-\udfff]", question)) is not None:
        raise FoveateError(f"the question holds {ascii(bad[0])[1:-1]}, which is no character; write it in UTF-8")
    # Blanks, and signs that nobody sees.
    if all(unicodedata.category(sign)[0] in "CZ" for sign in question):
        raise FoveateError('the question is empty; ask something, for instance "what colour is the circle ?"')
    return question.strip()


def check_prompt(prompt: str) -> str:
    """Return the text that is asked, in which `{question}` stands for each question.

    Raises:
        FoveateError: it has no such place, or holds bytes that are no text.

    >>> check_prompt("{question} Answer with one word.")
    '{question} Answer with one word.'
    """
    if "{question}" not in prompt:
        raise FoveateError(
            f'the prompt {prompt[:60]!r} has no place for the question; write "{{question}} Answer with one word."'
        )
    return check_question(prompt)


def question_messages(question: str, images: int = 1, clips: int = 0, system: str = "") -> list[Message]:
    """Return the messages of one question after its images and clips, and after a system prompt if there is one.

    >>> question_messages("what is it ?")
    [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'what is it ?'}]}]
    """
    shown = [*[{"type": "image"}] * images, *[{"type": "video"}] * clips]
    first = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*first, {"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def check_chat_template(processor: Any) -> None:
    """Check that a processor has a chat template.

    Raises:
        FoveateError: it has none.
    """
    if not getattr(processor, "chat_template", None):
        raise no_template("it has none")


def chat_text(processor: Any, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
    """Write messages as text by the model's own chat template.

    Args:
        processor: the model's processor.
        messages: the conversation.
        generation_prompt: end with what comes before the assistant's answer.

    Raises:
        FoveateError: the processor has no chat template, or the template refuses the messages.
    """
    return render(processor, messages, generation_prompt)


def chat_ids(processor: Any, messages: Sequence[Message]) -> Int64[Tensor, "1 S"]:
    """Return the ids `(1, S)` int64 of a conversation without images, up to the assistant's answer.

    Raises:
        FoveateError: the processor has no chat template, or the template refuses the messages.
    """
    return tokenized(processor, chat_text(processor, messages), return_tensors="pt")["input_ids"]


def processor_inputs(
    processor: Any,
    text: str,
    images: Sequence[Any] = (),
    refusal: str = "the model's processor refuses this image",
    **others: Any,
) -> dict[str, Any]:
    """Turn a prompt and its images into the inputs of a model.

    Args:
        processor: the model's processor.
        text: from `chat_text`.
        images: one per image placeholder of the text, in order, as the processor takes them.
        refusal: how the error begins if the processor refuses them.
        **others: what else the processor takes, such as `videos`.

    Returns:
        What the processor returns for a batch of one: input_ids `(1, S)` int64, attention_mask, pixel_values, ...

    Raises:
        FoveateError: the processor refuses the images or the text.
    """
    given = {"images": list(images)} if len(images) else {}
    try:
        return dict(processor(text=[text], return_tensors="pt", **given, **others, **special_tokens(processor, text)))
    except MemoryError:
        raise
    except Exception as error:  # A processor computes with the numbers in its files, with whatever library.
        raise FoveateError(f"{refusal} ({first_line(error)})") from error


def tokenized(processor: Any, text: str, **options: Any) -> Any:
    """Return what the processor's tokenizer makes of a prompt; an image stays one placeholder.

    Args:
        processor: the model's processor.
        text: from `chat_text`.
        **options: for the tokenizer, such as `return_offsets_mapping`.
    """
    return processor.tokenizer(text, **options, **special_tokens(processor, text))


def question_inputs(processor: Any, images: Image.Image | Sequence[Image.Image], question: str) -> dict[str, Any]:
    """Turn one image or several, and a question about them, into the inputs of a model.

    Args:
        processor: the model's processor.
        images: mode "RGB".
        question: text, not empty, without the model's image placeholder.

    Returns:
        What the processor returns for a batch of one: input_ids `(1, S)` int64, attention_mask, pixel_values, ...

    Raises:
        FoveateError: the question is empty or holds the model's image placeholder, the processor has no chat template,
            or it refuses an image.
    """
    given = images if isinstance(images, Sequence) else [images]
    return processor_inputs(processor, question_text(processor, question, len(given)), given)


def question_text(processor: Any, question: str, images: int = 1, clips: int = 0, system: str = "") -> str:
    """Write one question after its images and clips as text, by the model's own chat template.

    Args:
        processor: the model's processor.
        question: text, not empty, without a placeholder of the model.
        images: how many come before it.
        clips: how many come between images and question.
        system: what the model is told before all that, as its chat template puts it; "" for nothing.

    Raises:
        FoveateError: the question is empty or holds a placeholder of the model, or the processor has no chat template,
            or one that refuses or leaves out the question or the system prompt.
    """
    question = check_question(question)
    for name in ("image_token", "video_token", "audio_token"):
        placeholder = getattr(processor, name, None)
        if isinstance(placeholder, str) and placeholder and placeholder in question:
            what = name.removesuffix("_token")
            raise FoveateError(
                f"the question holds {placeholder}, which stands for the {what} in prompts; leave it out"
            )
    text = chat_text(processor, question_messages(question, images, clips, system))
    if question not in text:
        raise no_template("it leaves out the question")
    if system not in text:
        raise FoveateError("the model's chat template leaves out the system prompt; put it into --prompt instead")
    return text


def special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Return options that keep the tokenizer from writing [BOS] where the template has written it."""
    bos = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}
