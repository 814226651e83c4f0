"""Make batches of conversations: the model's own template and processor, labels on the assistant's turns, padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.families.prompt_check import prompt_layouts
from foveate.prompts import Message, chat_text, processor_inputs, tokenized
from foveate.train.sources import Conversation

IGNORE = -100
"""The label of a token that is not learned."""

PADDING = {"attention_mask": 0, "labels": IGNORE, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Values of padding in inputs with one value per token; `input_ids` have the tokenizer's own."""


class Batches:
    """Makes batches of conversations; a collator for data loaders.

    Labels are the assistant's turns, with what the template writes after them (the end of the turn); every other token
    is `IGNORE`. Rows are padded on the right.

    Args:
        processor: the model's own, with a chat template and a fast tokenizer.
        family: of the model; it may be a skeleton.
        max_length: longer rows are cut at their end; None leaves them.
        positions: whether each token of a row takes a position of the decoder, so that a row has to fit in.
    """

    def __init__(
        self, processor: Any, family: Family, max_length: int | None = None, *, positions: bool = True
    ) -> None:
        self._processor, self.family, self._max_length = processor, family, max_length
        self._longest = longest = family.longest_prompt if positions else None
        if max_length is not None and longest is not None and max_length > longest:
            raise FoveateError(
                f"max_length is {max_length:,}, and the model has room for {longest:,} tokens; lower max_length"
            )
        self._image = family.image_token
        tokenizer = processor.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise FoveateError("training needs a fast tokenizer, which gives the place of each token in the text")
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def __call__(self, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make one batch.

        Returns:
            What the model takes, with `labels`; `rows`, the numbers of the rows; and `tokens`, how many there are.

        Raises:
            FoveateError: an image is cut off or brings no tokens, or a row is too long or has nothing to learn.
        """
        made = [self.row(one) for _, one in rows]
        batch = pad(made, self.padding, self.family)
        return {**batch, "rows": [number for number, _ in rows], "tokens": int(batch["attention_mask"].sum())}

    def row(self, one: Conversation) -> dict[str, Tensor]:
        """Return the inputs and labels of one conversation, `(1, S)` int64 each, and its images."""
        text, spans = self.spoken(one)
        images = self.images(one)
        found = processor_inputs(self._processor, text, images, f"{one.name}: the processor refuses it")
        inputs = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        layouts = prompt_layouts(self.family, inputs) if "pixel_values" in inputs else ()
        expected = sum(layout.placeholders for layout in layouts)
        return self.labelled(inputs, text, spans, one.name, expected)

    def spoken(self, one: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and the spans of the assistant's turns in it."""
        return spoken(self._processor, one.messages, one.name)

    def images(self, one: Conversation) -> Sequence[Any]:
        """Return the images of a conversation as the processor takes them."""
        return one.pictures()

    def labelled(
        self, inputs: dict[str, Tensor], text: str, spans: Sequence[tuple[int, int]], name: str, expected: int
    ) -> dict[str, Tensor]:
        """Add labels to the inputs of one row, and cut it to `max_length`; `expected` placeholders must be left.

        Raises:
            FoveateError: as in `__call__`.
        """
        ids = inputs["input_ids"]
        encoded = tokenized(self._processor, text, return_offsets_mapping=True)
        # The processor writes many placeholders where the text has one; all other tokens are the same in both.
        plain = [(i, at) for i, at in zip(encoded["input_ids"], encoded["offset_mapping"]) if i != self._image]
        here = (ids[0] != self._image).nonzero()[:, 0]
        if ids[0, here].tolist() != [i for i, _ in plain]:
            raise FoveateError(
                f"{name}: the processor's tokens are not the tokenizer's, so the assistant's turns can't be found in "
                "them"
            )
        labels = torch.full_like(ids, IGNORE)
        learned = [any(b < end and e > begin and e > b for begin, end in spans) for _, (b, e) in plain]
        labels[0, here] = torch.where(torch.tensor(learned), ids[0, here], IGNORE)
        inputs["labels"] = labels
        if self._max_length is not None and ids.shape[1] > self._max_length:
            for key, value in inputs.items():
                if value.shape[:2] == ids.shape[:2] and (key in PADDING or key == "input_ids"):
                    inputs[key] = value[:, : self._max_length]
        length, longest = inputs["input_ids"].shape[1], self._longest
        if longest is not None and length > longest:
            raise FoveateError(
                f"{name} has {length:,} tokens, and the model has room for {longest:,}; shorten it or leave it out, or "
                f"set max_length to at most {longest:,}, which cuts its end"
            )
        check_row(inputs, self._image, expected, name, self._max_length)
        return inputs


def check_row(
    inputs: Mapping[str, Tensor], image_token: int, expected: int, name: str, max_length: int | None = None
) -> None:
    """Check that a row can be trained on.

    Args:
        inputs: with `input_ids` and `labels`, `(1, S)` int64.
        image_token: the id of an image's placeholder.
        expected: how many placeholders the row's images need.
        name: of the row, for the message.
        max_length: what the row was cut to, for the message.

    Raises:
        FoveateError: labels and tokens differ in number, placeholders are missing, or no token has a label.
    """
    ids, labels = inputs["input_ids"], inputs["labels"]
    if labels.shape != ids.shape:
        raise FoveateError(
            f"{name}: {labels.shape[-1]} labels for {ids.shape[-1]} tokens; every token needs one, {IGNORE} where "
            "nothing is learned"
        )
    placed = int((ids == image_token).sum())
    cut = f" in the first {max_length} tokens (max_length)" if max_length is not None else ""
    if placed != expected:
        raise FoveateError(
            f"{name}: its images need {expected} tokens, and {placed} are left{cut}; "
            + ("raise max_length or " if max_length is not None else "look for the image's word in its text, or ")
            + "leave the row out"
        )
    if not bool((labels[:, 1:] != IGNORE).any()):
        advice = "raise max_length" if max_length is not None else "write an answer, or leave the row out"
        raise FoveateError(f"{name}: no answer is left{cut}, so there is nothing to learn; {advice}")


def spoken(processor: Any, messages: Sequence[Message], name: str) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation by the model's chat template, and find the spans of the assistant's turns in the text.

    Raises:
        FoveateError: the template is missing, or changes earlier turns when later ones come.
    """
    try:
        whole = chat_text(processor, messages, generation_prompt=False)
    except FoveateError as error:
        raise FoveateError(f"{name}: {error}") from None
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat_text(processor, messages[:number])
        after = chat_text(processor, messages[: number + 1], generation_prompt=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise FoveateError(
                f"{name}: the chat template writes earlier turns differently when later ones follow, so the "
                "assistant's turns can't be found"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def inputs_of(
    collate: Callable[[Sequence[tuple[int, Conversation]]], dict[str, Any]],
    rows: Sequence[Conversation],
    numbers: Sequence[int],
    size: int = 8,
) -> Iterator[dict[str, Any]]:
    """Make what a model is called with for some conversations, without what only training needs, a few at a time.

    Args:
        collate: makes a batch, such as `Batches`.
        rows: all conversations.
        numbers: of those that are wanted.
        size: conversations of a batch.
    """
    for start in range(0, len(numbers), size):
        batch = collate([(number, rows[number]) for number in numbers[start : start + size]])
        yield {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def pad(rows: Sequence[Mapping[str, Tensor]], pad_token: int, family: Family) -> dict[str, Tensor]:
    """Join rows of one conversation each to one batch, padded on the right; images follow each other."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, Tensor] = {}
    text = {"input_ids": pad_token, **PADDING}
    images = [{name: value for name, value in row.items() if name not in text} for row in rows]
    for key in dict.fromkeys(key for row in rows for key in row if key in text):
        given = [torch.nn.functional.pad(row[key], (0, longest - row[key].shape[1]), value=text[key])
                 for row in rows if key in row]  # fmt: skip
        batch[key] = torch.cat(given)
    return batch | (family.joined(images) if (images := list(filter(None, images))) else {})
