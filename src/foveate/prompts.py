"""Build chat prompts: messages, text by the model's chat template, and the processor's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from foveate.errors import FoveateError

__all__ = [
    "Message",
    "chat_inputs",
    "chat_text",
    "check_chat_template",
    "question_inputs",
    "question_messages",
    "tokenized",
]

Message = dict[str, Any]
"""A turn as chat templates take it: `role`, and `content` as a list of parts."""


def question_messages(question: str, images: int = 1) -> list[Message]:
    """Return the messages of one question after its images.

    >>> question_messages("what is it ?")
    [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'what is it ?'}]}]
    """
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]


def check_chat_template(processor: Any) -> None:
    """Check that a processor has a chat template.

    Raises:
        FoveateError: it has none.
    """
    if not getattr(processor, "chat_template", None):
        raise _no_template("it has none")


def chat_text(processor: Any, messages: Sequence[Message], *, answer_follows: bool = True) -> str:
    """Write messages as text by the model's own chat template.

    Args:
        processor: the model's processor.
        messages: turns in order.
        answer_follows: end where the assistant begins to answer.

    Raises:
        FoveateError: the processor has no chat template, or the template refuses the messages.
    """
    try:
        return processor.apply_chat_template(list(messages), add_generation_prompt=answer_follows, tokenize=False)
    except ValueError as error:
        raise _no_template(_line(error)) from error


def chat_inputs(
    processor: Any, texts: Sequence[str], images: Sequence[Image.Image] = (), *, name: str = "this prompt"
) -> dict[str, Any]:
    """Turn prompts from `chat_text` and their images into the inputs of a model.

    Args:
        processor: the model's processor.
        texts: one prompt or several; each has one placeholder per image.
        images: those of all prompts, in order; none for text alone.
        name: what errors call the input.

    Returns:
        What the processor returns: input_ids `(B, S)` int64, attention_mask, pixel_values, ...

    Raises:
        FoveateError: the processor refuses the prompts or images.
    """
    given = {"images": list(images)} if len(images) else {}
    try:
        return dict(processor(text=list(texts), return_tensors="pt", **given, **_special_tokens(processor, texts)))
    except ValueError as error:
        raise FoveateError(f"the model's processor refuses {name} ({_line(error)})") from error


def tokenized(processor: Any, text: str, **options: Any) -> Any:
    """Return what the processor's tokenizer makes of a prompt from `chat_text`; an image stays one placeholder.

    Args:
        processor: the model's processor.
        text: the prompt.
        **options: for the tokenizer, such as `return_offsets_mapping`.
    """
    return processor.tokenizer(text, **options, **_special_tokens(processor, [text]))


def question_inputs(processor: Any, images: Sequence[Image.Image], question: str) -> dict[str, Any]:
    """Turn images and one question about them into the inputs of a model, by its own chat template.

    Args:
        processor: the model's processor.
        images: mode "RGB"; none for a question alone.
        question: text without the model's image placeholder.

    Returns:
        What the processor returns for a batch of one: input_ids `(1, S)` int64, attention_mask, pixel_values, ...

    Raises:
        FoveateError: the question holds the model's image placeholder, the processor has no chat template, or it
            refuses the image.
    """
    placeholder = getattr(processor, "image_token", None)
    if isinstance(placeholder, str) and placeholder in question:
        raise FoveateError(f"the question holds {placeholder}, which stands for the image in prompts; leave it out")
    text = chat_text(processor, question_messages(question, len(images)))
    return chat_inputs(processor, [text], images, name="this image" if len(images) == 1 else "these images")


def _special_tokens(processor: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Return options that keep the tokenizer from writing [BOS] where the template has written it."""
    bos = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if bos is not None and texts[0].startswith(bos) else {}


def _no_template(reason: str) -> FoveateError:
    return FoveateError(
        f"the model's processor has no usable chat template ({reason}); add chat_template.jinja to the model"
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
