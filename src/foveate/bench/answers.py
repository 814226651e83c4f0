"""Answer many questions about few images, greedily: each compressed image is prefilled once for all its questions.

What stands before the questions, up to the last visual token, is the same for every question about an image. With
methods that don't read the question, its keys and values are made once and repeated for the questions. Methods that do
read it go through the model's own `generate`, question by question, in batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.bench.tasks import TaskImage
from foveate.devices import devices_of
from foveate.engine import Encoded, apply, compress, encode, encoder_outputs, timed
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.prompts import chat_text, check_chat_template, processor_inputs, question_messages, tokenized
from foveate.spec import Spec
from foveate.transformers_api import cache_argument, cache_of_output, new_cache

CACHE_BYTES = 256 * 2**20
"""Largest size in bytes of the cache with which one batch of questions starts."""
ROWS_AT_ONCE = 128
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which models take which tokens are visual: some count positions by it, some let an image see itself."""
PLAIN_ROWS = 16
"""Rows of a batch that goes through `generate`."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of all questions about one image, as token ids.

    Attributes:
        pixels: the processor's inputs that describe the image.
        rows: per question, the ids of the whole prompt, one placeholder per visual token.
        shared: how many ids, up to the last visual token, all rows have in common; 0 if they don't.
    """

    pixels: dict[str, Tensor]
    rows: tuple[tuple[int, ...], ...]
    shared: int


@dataclass
class Spent:
    """Milliseconds that one configuration took on some images, and the counts by which they are divided.

    `prefix` is the prefill of what all questions of an image share, `question` that of what is left, `decode` all later
    steps; `compressions` counts how often an image was compressed: once each, or once per question.
    """

    encoder: float = 0.0
    compressor: float = 0.0
    prefix: float = 0.0
    question: float = 0.0
    decode: float = 0.0
    images: int = 0
    compressions: int = 0
    questions: int = 0


@dataclass
class Answered:
    """The answers of one configuration.

    Attributes:
        texts: per picture, per question.
        before: per picture, visual tokens of the whole prompt.
        after: per picture, visual tokens after the last step (for methods that read the question: on average).
        mean: per picture, visual tokens per decoder layer, averaged over layers (and questions).
        spent: where the time went; the encoder's is for the caller to fill in.
    """

    texts: list[list[str]]
    before: list[float]
    after: list[float]
    mean: list[float]
    spent: Spent = field(default_factory=Spent)


class Asker:
    """Answers questions with a model and its processor.

    Args:
        model: of a supported family, in evaluation mode.
        processor: its own, with a chat template.
        longest: the most tokens that an answer may have.
        batch: how many prompts the model gets at once, padded on the left to one length. None puts only prompts of one
            length together, which need no padding, and as many questions as share a small cache.

    Raises:
        UnsupportedFamily: the model is of no supported family.
        FoveateError: the processor has no chat template, or the batch is smaller than 1.
    """

    def __init__(self, model: nn.Module, processor: Any, longest: int = 16, batch: int | None = None) -> None:
        check_chat_template(processor)
        if batch is not None and batch < 1:
            raise FoveateError(f"--batch is {batch}; it must be at least 1")
        self.batch = batch
        self.model: Any = model
        self.processor = processor
        self.longest = longest
        self.family: Family = family_of(model)
        self.device: torch.device = self.family.device
        self.devices = devices_of(model)
        takes = inspect.signature(self.model.forward).parameters
        self._types = [name for name in _TOKEN_TYPES if name in takes]
        settings = self.model.generation_config
        ends = settings.eos_token_id
        self.ends: list[int] = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
        self.pad: int = settings.pad_token_id if settings.pad_token_id is not None else (self.ends or [0])[0]

    # Prompts

    def prompts(self, picture: TaskImage) -> Prompts:
        """Prepare all questions about a picture; the image goes through the processor once.

        Raises:
            FoveateError: the image can't be read.
        """
        image = picture.load()
        texts = [chat_text(self.processor, question_messages(asked.text)) for asked in picture.questions]
        first = processor_inputs(self.processor, texts[0], [image], f"the model's processor refuses {picture.name}")
        family = self.family
        whole: list[int] = first["input_ids"][0].tolist()
        count = whole.count(family.image_token)
        rows = [whole]
        for text in texts[1:]:
            ids: list[int] = tokenized(self.processor, text)["input_ids"]
            if ids.count(family.image_token) != 1:
                ids = processor_inputs(self.processor, text, [image])["input_ids"][0].tolist()
            else:
                at = ids.index(family.image_token)
                ids = (
                    ids[:at]
                    + whole[whole.index(family.image_token) : len(whole) - _after_last(whole, family)]
                    + (ids[at + 1 :])
                )
            if ids.count(family.image_token) != count:
                raise FoveateError(f"a question about {picture.name} holds the image placeholder; take it out")
            rows.append(ids)
        shared = len(whole) - _after_last(whole, family)
        if any(row[:shared] != whole[:shared] or len(row) <= shared for row in rows):
            shared = 0
        pixels = {name: first[name] for name in family.pixel_inputs if name in first}
        return Prompts(pixels, tuple(tuple(row) for row in rows), shared)

    def pixels(self, prompts: Iterable[Prompts], without: Iterable[str] = ()) -> dict[str, Tensor]:
        """Return the images of several prompts as the inputs of one call of the encoder.

        Args:
            prompts: of the images.
            without: names of inputs that are left out.

        Raises:
            FoveateError: the processor gives the images inputs of different shapes.
        """
        every = [each.pixels for each in prompts]
        found = {}
        for name in (name for name in every[0] if name not in without):
            shapes = {tuple(pixels[name].shape[1:]) for pixels in every}
            if len(shapes) > 1:
                raise FoveateError(
                    f"the model's processor gives images of different sizes a {name} of different shapes "
                    f"({', '.join(map(str, sorted(shapes)))}), so they don't fit into one batch; use --batch 1"
                )
            found[name] = torch.cat([pixels[name] for pixels in every]).to(self.device)
        return found

    def encode(self, prompts: Sequence[Prompts], specs: Sequence[Spec]) -> Encoded:
        """Encode the images of several prompts; those whose inputs have one shape together."""
        shapes: dict[Any, list[int]] = {}
        for index, each in enumerate(prompts):
            shape = tuple((name, tuple(value.shape[1:])) for name, value in each.pixels.items())
            shapes.setdefault(shape, []).append(index)
        parts = [encode(self.model, self.pixels(prompts[index] for index in group), specs) for group in shapes.values()]
        order = [index for group in shapes.values() for index in group]
        return _joined(parts).pick([order.index(index) for index in range(len(order))])

    # Answers

    @torch.inference_mode()
    def answer(
        self, prompts: Sequence[Prompts], spec: Spec, encoded: Encoded, *, reuse: bool | None = None
    ) -> Answered:
        """Answer all questions about some encoded images under one configuration.

        Args:
            prompts: of the pictures, in the order of `encoded`.
            spec: the configuration; one without steps is dense.
            encoded: the pictures, encoded for this configuration.
            reuse: whether the questions of an image share its keys and values; None does where it can be done.

        Raises:
            FoveateError: the configuration can't be done on these images, or it reads the question and is to be reused.
        """
        aware = any(step.method.query_aware for step in spec.steps)
        inside = any(isinstance(place, int) and place > 0 for step in spec.steps for place in step.places)
        if reuse is None:
            reuse = not aware and not inside and all(each.shared for each in prompts)
        elif reuse and (aware or inside):
            why = "reads the question" if aware else "acts inside the decoder"
            raise FoveateError(f"{spec} {why}, so its questions can't share an image's keys and values")
        none = [0.0] * len(prompts)
        answered = Answered([[""] * len(each.rows) for each in prompts], none[:], none[:], none[:])
        answered.spent.images = len(prompts)
        answered.spent.questions = sum(len(each.rows) for each in prompts)
        if reuse:
            images = ((each.shared, index) for index, each in enumerate(prompts))
            for batch in self._batches(images, len(prompts)):
                self._reusing(prompts, batch, spec, encoded, answered)
        else:
            rows = ((len(row), (index, n)) for index, each in enumerate(prompts) for n, row in enumerate(each.rows))
            for batch in self._batches(rows, PLAIN_ROWS):
                if inside:
                    self._inside(prompts, batch, spec, encoded, answered)
                else:
                    self._plainly(prompts, batch, spec, encoded, answered)
        return answered

    def _batches(self, items: Iterable[tuple[int, Any]], most: int) -> Iterator[list[Any]]:
        """Yield lists of items that go through the model together.

        Args:
            items: each after its length.
            most: the most in a list, if no batch is set.
        """
        by_length: dict[int, list[Any]] = {}
        for length, item in items:
            by_length.setdefault(length, []).append(item)
        if self.batch is None:
            groups = list(by_length.values())
        else:
            # Neighbours in length share a batch, so that there is little padding.
            groups, most = [[item for length in sorted(by_length) for item in by_length[length]]], self.batch
        for group in groups:
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _reusing(
        self, prompts: Sequence[Prompts], group: Sequence[int], spec: Spec, encoded: Encoded, answered: Answered
    ) -> None:
        """Prefill what all questions about an image share, for a batch of images, then answer the questions."""
        spent = answered.spent
        # One column more than the shared ones: its position id is where the questions begin.
        inputs = self.padded([prompts[index].rows[0][: prompts[index].shared + 1] for index in group])
        short = compress(self.model, inputs, spec, encoded.pick(group))
        spent.compressor += short.milliseconds["compressor"]
        spent.compressions += len(group)
        for index, image in zip(group, short.images, strict=True):
            answered.before[index] = image.before
            answered.after[index] = answered.mean[index] = image.after
        positions: Tensor = short["position_ids"]
        mask: Tensor = short["attention_mask"][:, :-1]
        began = now(self.devices)
        output = self.model(
            input_ids=short["input_ids"][:, :-1],
            attention_mask=mask,
            position_ids=positions[..., :-1],
            mm_encoder_outputs=short["mm_encoder_outputs"],
            use_cache=True,
            logits_to_keep=1,
            **{name: short[name][:, :-1] for name in self._types},
        )
        cache = cache_of_output(output)
        spent.prefix += (now(self.devices) - began) * 1e3

        held = sum(layer.keys[0].nbytes + layer.values[0].nbytes for layer in cache.layers)
        at_once = self.batch or max(1, min(ROWS_AT_ONCE, CACHE_BYTES // held))
        # Questions of similar length share a batch, so that there is little padding.
        rows = [(row, n) for row, index in enumerate(group) for n in range(len(prompts[index].rows))]
        rows.sort(key=lambda each: len(prompts[group[each[0]]].rows[each[1]]))
        for start in range(0, len(rows), at_once):
            batch = rows[start : start + at_once]
            of = torch.tensor([row for row, _ in batch], device=self.device)
            ends = [prompts[group[row]].rows[n][prompts[group[row]].shared :] for row, n in batch]
            texts = self._decode(_selected(cache, of), mask[of], positions[..., -1].index_select(-1, of), ends, spent)
            for (row, n), text in zip(batch, texts, strict=True):
                answered.texts[group[row]][n] = text

    def _decode(
        self, cache: Any, mask: Tensor, start: Tensor, ends: Sequence[Sequence[int]], spent: Spent
    ) -> list[str]:
        """Return greedy answers for rows whose beginning is in the cache.

        Args:
            cache: keys and values of R rows; it grows.
            mask: `(R, P)` int64, 0 where the beginning is padding.
            start: `(R,)` or `(axes, R)`, the position id of the first new token.
            ends: per row, the ids that are left of its prompt.
            spent: gets the time.
        """
        longest = max(map(len, ends))
        ids = torch.tensor([[self.pad] * (longest - len(end)) + list(end) for end in ends], device=self.device)
        real = torch.tensor([[0] * (longest - len(end)) + [1] * len(end) for end in ends], device=self.device)
        positions = start[..., None] + (real.cumsum(dim=1) - 1).clamp(min=0)
        mask = torch.cat([mask, real], dim=1)
        rows = torch.arange(len(ends), device=self.device)
        stop = self._stop
        answers = torch.full((len(ends), self.longest), self.pad, device=self.device)
        for step in range(self.longest):
            began = now(self.devices)
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **cache_argument(self.model.forward, cache),
            )
            ids = output.logits[:, -1:].argmax(dim=-1)
            answers[rows, step] = ids[:, 0]
            open_rows = (~torch.isin(ids[:, 0], stop)).nonzero().squeeze(1)
            milliseconds = (now(self.devices) - began) * 1e3
            if step == 0:
                spent.question += milliseconds
            else:
                spent.decode += milliseconds
            if not len(open_rows):
                break
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions[..., -1:] + 1
            if len(open_rows) <= len(rows) // 2:
                # Rows whose answers have ended are removed from the cache.
                cache = _selected(cache, open_rows)
                ids, mask, rows = ids[open_rows], mask[open_rows], rows[open_rows]
                positions = positions.index_select(-2, open_rows)
        return self._texts(answers)

    def _plainly(
        self,
        prompts: Sequence[Prompts],
        group: Sequence[tuple[int, int]],
        spec: Spec,
        encoded: Encoded,
        answered: Answered,
    ) -> None:
        """Answer whole prompts with the model's own `generate`."""
        spent = answered.spent
        inputs = self.padded([prompts[index].rows[n] for index, n in group])
        short = compress(self.model, inputs, spec, encoded.pick([index for index, _ in group]))
        spent.compressor += short.milliseconds["compressor"]
        texts = self._generated(short, spent)
        _record(prompts, group, texts, [(image.before, image.after, image.after) for image in short.images], answered)

    def _inside(
        self,
        prompts: Sequence[Prompts],
        group: Sequence[tuple[int, int]],
        spec: Spec,
        encoded: Encoded,
        answered: Answered,
    ) -> None:
        """Answer whole prompts with `generate` under `apply`, where steps inside the decoder act."""
        spent = answered.spent
        inputs = self.padded([prompts[index].rows[n] for index, n in group])
        # Position ids may need the other inputs that describe the images.
        inputs |= self.pixels((prompts[index] for index, _ in group), without=("pixel_values",))
        inputs["mm_encoder_outputs"] = encoder_outputs(self.model, encoded.pick([index for index, _ in group]))
        with apply(self.model, spec, synchronise=True) as run:
            texts = self._generated(inputs, spent)
        report = run.report()
        spent.compressor += report.milliseconds
        # Steps inside the decoder run during its prefill; their time is not counted twice.
        spent.question -= report.inside
        counts = [(image.before, image.after, image.mean_over_layers) for image in report.images]
        _record(prompts, group, texts, counts, answered)

    def _generated(self, inputs: Mapping[str, Any], spent: Spent) -> list[str]:
        """Return the answers of the model's own `generate` to a batch of prompts; `spent` gets the time."""
        with timed(self.model) as times:
            output = self.model.generate(
                **inputs, max_new_tokens=self.longest, do_sample=False, num_beams=1, pad_token_id=self.pad
            )
        spent.question += times.prefill
        spent.decode += times.decode
        return self._texts(output[:, inputs["input_ids"].shape[1] :])

    def padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return prompts as the text inputs of one call, padded on the left, so that all end in the last column."""
        longest = max(map(len, rows))
        empty = [longest - len(row) for row in rows]
        ids = torch.tensor([[self.pad] * n + list(row) for n, row in zip(empty, rows)], device=self.device)
        mask = torch.tensor([[0] * n + [1] * len(row) for n, row in zip(empty, rows)], device=self.device)
        types = {name: (ids == self.family.image_token).int() for name in self._types}
        return {"input_ids": ids, "attention_mask": mask, **types}

    @property
    def _stop(self) -> Tensor:
        return torch.tensor(self.ends, dtype=torch.int64, device=self.device)

    def _texts(self, ids: Tensor) -> list[str]:
        """Return rows of new ids as text up to their end; batches go on until all rows have ended."""
        ended = torch.isin(ids, self._stop).long().cumsum(dim=1) > 0
        return self.processor.batch_decode(ids.masked_fill(ended, self.pad), skip_special_tokens=True)


def _record(
    prompts: Sequence[Prompts],
    group: Sequence[tuple[int, int]],
    texts: Sequence[str],
    counts: Sequence[tuple[int, int, float]],
    answered: Answered,
) -> None:
    """Store answers to single questions at their image and question.

    Args:
        prompts: of all pictures.
        group: per answer, the picture and the number of its question.
        texts: the answers.
        counts: per answer, visual tokens of the full prompt, after the last step, and per decoder layer on average.
        answered: gets them; what questions of a picture differ in is averaged over them.
    """
    answered.spent.compressions += len(group)
    for (index, n), text, (before, after, mean) in zip(group, texts, counts, strict=True):
        answered.texts[index][n] = text
        answered.before[index] = before
        answered.after[index] += after / len(prompts[index].rows)
        answered.mean[index] += mean / len(prompts[index].rows)


def _after_last(ids: Sequence[int], family: Family) -> int:
    """Return the number of ids after the last visual token."""
    return list(reversed(ids)).index(family.image_token)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Return images that were encoded apart for the same specs, one after another."""
    if len(parts) == 1:
        return parts[0]

    def of(name: str) -> Any:
        return tuple(value for part in parts for value in getattr(part, name))

    signals = {signal: tuple(value for part in parts for value in part.signals[signal]) for signal in parts[0].signals}
    names = ("layouts", "seen", "projected", "companions", "structural", "inside")
    return replace(
        parts[0],
        **{name: of(name) for name in names},
        features=None if parts[0].features is None else of("features"),
        signals=signals,
        milliseconds=sum(part.milliseconds for part in parts),
    )


def _selected(cache: Any, rows: Tensor) -> Any:
    """Return a new cache with some rows of another one; a row may occur more than once."""
    selected = new_cache()
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), number)
    return selected
