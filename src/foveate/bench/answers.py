"""Answer many questions about few images: each compressed image is prefilled once for all its questions.

What stands before the questions, up to the last visual token, is the same for every question about an image. With
methods that don't read the question, its keys and values are made once and repeated for the questions. Methods that do
read it, or act inside the decoder, get whole prompts, in batches. All answers then grow in one loop, in which one
`Decoding` chooses the tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from foveate.bench.configurations import DENSE
from foveate.bench.tasks import TaskClip, TaskImage, TaskQuestion
from foveate.clips import Clip
from foveate.decoding import Answers, Decoding
from foveate.devices import devices_of
from foveate.engine import Encoded, apply, compress, encode, encoder_outputs
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.families.prompt_check import prompt_layouts
from foveate.prompts import check_chat_template, check_prompt, question_text, tokenized
from foveate.spec import Spec
from foveate.transformers_api import cache_argument, cache_of_output, row_bytes, with_rows
from foveate.visual_prompts import Shown, shown_to

CACHE_BYTES = 256 * 2**20
"""Largest size in bytes of the cache with which one batch of questions starts."""
ROWS_AT_ONCE = 128
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which models take which tokens are visual: some count positions by it, some let an image see itself."""
PLAIN_ROWS = 16
"""Rows of a batch of whole prompts."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of all questions about one image or clip, as token ids.

    Attributes:
        pixels: the processor's inputs that describe the image.
        rows: per question, the ids of the whole prompt, one placeholder per visual token.
        shared: how many ids, up to the last visual token, all rows have in common; 0 if they don't.
        images: how many images each prompt holds: more than one for a clip whose frames are images.
    """

    pixels: dict[str, Tensor]
    rows: tuple[tuple[int, ...], ...]
    shared: int
    images: int = 1


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
        cut: per picture, per question, whether the answer reached the most tokens without an end.
        before: per picture, visual tokens of the whole prompt.
        after: per picture, visual tokens after the last step (for methods that read the question: on average).
        mean: per picture, visual tokens per decoder layer, averaged over layers (and questions).
        spent: where the time went; the encoder's is for the caller to fill in.
    """

    texts: list[list[str]]
    cut: list[list[bool]]
    before: list[float]
    after: list[float]
    mean: list[float]
    spent: Spent = field(default_factory=Spent)


def prompt_texts(
    processor: Any, prompt: str, picture: TaskImage | TaskClip, shown: Shown | None = None, system: str = ""
) -> list[str]:
    """Return the prompts of all questions about a picture as text.

    Args:
        processor: of the model.
        prompt: what is asked: a text in which `{question}` stands for the question.
        picture: with its questions.
        shown: how the model takes it; None is an image.
        system: what the model is told before it.

    Raises:
        FoveateError: a question is empty or holds a placeholder of the model, or the chat template can't be used.
    """
    texts = []
    for asked in picture.questions:
        try:
            question = prompt.replace("{question}", asked.text)
            if shown is None:
                texts.append(question_text(processor, question, system=system))
            else:
                texts.append(shown.text(processor, question, system))
        except FoveateError as error:
            raise FoveateError(f"{_named(asked, picture)}: {error}") from None
    return texts


class Asker:
    """Answers questions with a model and its processor.

    Args:
        model: of a supported family, in evaluation mode.
        processor: its own, with a chat template.
        longest: the most tokens that an answer may have.
        batch: how many prompts the model gets at once, padded on the left to one length. None puts only prompts of one
            length together, which need no padding, and as many questions as share a small cache.
        greedy: decode without the model's own generation configuration.
        prompt: what is asked: a text in which `{question}` stands for the question.
        system: what the model is told before picture and question, as its chat template puts it; "" for nothing.

    Raises:
        UnsupportedFamily: the model is of no supported family.
        FoveateError: the processor has no chat template, the batch or `longest` is smaller than 1, the prompt has no
            `{question}`, or the model's generation configuration can't be obeyed.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        longest: int = 16,
        batch: int | None = None,
        greedy: bool = False,
        prompt: str = "{question}",
        system: str = "",
    ) -> None:
        check_chat_template(processor)
        if batch is not None and batch < 1:
            raise FoveateError(f"--batch is {batch}; it must be at least 1")
        if longest < 1:
            raise FoveateError(f"an answer of at most {longest} tokens is none; allow at least 1")
        self.prompt = check_prompt(prompt)
        self.system = system
        self.batch = batch
        self.model: Any = model
        self.processor = processor
        self.longest = longest
        self.family: Family = family_of(model)
        self.device: torch.device = self.family.device
        self.devices = devices_of(model)
        takes = inspect.signature(self.model.forward).parameters
        self._types = [name for name in _TOKEN_TYPES if name in takes]
        self.decoding = Decoding(self.model, self.device, getattr(processor, "tokenizer", None), longest, greedy)
        self.pad: int = self.decoding.pad

    # Prompts

    def prompts(self, picture: TaskImage | TaskClip) -> Prompts:
        """Prepare all questions about a picture; the image or clip goes through the processor once.

        Raises:
            FoveateError: the image can't be read, or a question can't be asked.
        """
        what = picture.load()
        family, shown = self.family, shown_to(self.family, self.processor, what)
        texts = prompt_texts(self.processor, self.prompt, picture, shown, self.system)
        first = shown.inputs(self.processor, texts[0], picture.name)
        whole: list[int] = first["input_ids"][0].tolist()
        count = self._visual(whole)
        begun = self._begun(texts[0], whole)
        rows = [whole]
        for text in texts[1:]:
            ids: list[int] = tokenized(self.processor, text)["input_ids"]
            if begun is None or ids[: len(begun[0])] != begun[0]:
                ids = shown.inputs(self.processor, text, picture.name)["input_ids"][0].tolist()
            else:
                ids = begun[1] + ids[len(begun[0]) :]
            if self._visual(ids) != count:
                raise FoveateError(f"a question about {picture.name} holds the image placeholder; take it out")
            rows.append(ids)
        shared = len(whole) - _after_last(whole, family)
        if any(row[:shared] != whole[:shared] or len(row) <= shared for row in rows):
            shared = 0
        names = dict.fromkeys((*family.pixel_inputs, *family.video_inputs))
        pixels = {name: torch.as_tensor(first[name]) for name in names if first.get(name) is not None}
        images = len(prompt_layouts(family, first)) if isinstance(what, Clip) else 1
        return Prompts(pixels, tuple(tuple(row) for row in rows), shared, images)

    def _visual(self, ids: Sequence[int]) -> int:
        """Return how many visual tokens a prompt has."""
        return int(self.family.placeholders(torch.tensor(ids)).sum())

    def _begun(self, text: str, whole: list[int]) -> tuple[list[int], list[int]] | None:
        """Return the ids of a prompt up to its question: as the tokenizer makes them, and as the processor does.

        The processor puts placeholders, and text around and among them: names of tiles, times, breaks between rows.
        None if the ends of both differ.

        Args:
            text: a prompt.
            whole: the ids that the processor made of it.
        """
        plain: list[int] = tokenized(self.processor, text)["input_ids"]
        end = whole[len(whole) - _after_last(whole, self.family) :]
        alike = 0
        while alike < min(len(end), len(plain)) and end[-1 - alike] == plain[-1 - alike]:
            alike += 1
        return (plain[:-alike], whole[:-alike]) if alike else None

    def check(self, pictures: Iterable[TaskImage | TaskClip]) -> None:
        """Check that every question can be asked, before any of them is.

        Raises:
            FoveateError: an image can't be read, a question is empty or holds a placeholder of the model, or a prompt
                and its answer are longer than the model takes.
        """
        room = getattr(self.family.config.get_text_config(), "max_position_embeddings", None)
        # An image takes as many tokens as another one of its size, and a clip as another one with as many frames.
        taken: dict[tuple[tuple[int, int], int], int] = {}
        for picture in pictures:
            if room is None:
                prompt_texts(self.processor, self.prompt, picture, system=self.system)
                continue
            what = picture.load()
            shown = shown_to(self.family, self.processor, what)
            texts = prompt_texts(self.processor, self.prompt, picture, shown, self.system)
            lengths = [len(tokenized(self.processor, text)["input_ids"]) for text in texts]
            size = what.size, len(what.frames) if isinstance(what, Clip) else 0
            if size not in taken:
                whole = shown.inputs(self.processor, texts[0], picture.name)
                prompt_layouts(self.family, whole)
                taken[size] = whole["input_ids"].shape[1] - lengths[0]
            length, asked = max(zip(lengths, picture.questions, strict=True), key=itemgetter(0))
            length += taken[size]
            if length + self.longest > room:
                fewer = "take fewer frames, or " if size[1] else ""
                raise FoveateError(
                    f"{_named(asked, picture)}: prompt and answer take {length} + {self.longest} tokens and the model "
                    f"has room for {room}; {fewer}shorten the question or the answer"
                )

    def pixels(self, prompts: Iterable[Prompts], without: Iterable[str] = ()) -> dict[str, Tensor]:
        """Return the images of several prompts as the inputs of one call of the encoder.

        Args:
            prompts: of the images.
            without: names of inputs that are left out.

        Raises:
            FoveateError: the processor gives the images inputs of different shapes.
        """
        every = [{name: value for name, value in each.pixels.items() if name not in without} for each in prompts]
        for name in dict.fromkeys(name for pixels in every for name in pixels):
            shapes = {tuple(pixels[name].shape[1:]) for pixels in every if name in pixels}
            if len(shapes) > 1:
                raise FoveateError(
                    f"the model's processor gives images of different sizes a {name} of different shapes "
                    f"({', '.join(map(str, sorted(shapes)))}), so they don't fit into one batch; use --batch 1"
                )
        # Images and clips have inputs of their own.
        groups = {tuple(pixels): [each for each in every if tuple(each) == tuple(pixels)] for pixels in every}
        found = {name: value for group in groups.values() for name, value in self.family.joined(group).items()}
        return {name: value.to(self.device) for name, value in found.items()}

    def encode(self, prompts: Sequence[Prompts], specs: Sequence[Spec]) -> Encoded:
        """Encode the images of several prompts; those whose inputs have one shape together."""
        shapes: dict[Any, list[int]] = {}
        for index, each in enumerate(prompts):
            shape = tuple((name, tuple(value.shape[1:])) for name, value in each.pixels.items())
            shapes.setdefault(shape, []).append(index)
        parts = []
        for group in shapes.values():
            images = self.pixels(prompts[index] for index in group)
            # The prompt tells which tiles are one image.
            ids = self.padded([prompts[index].rows[0] for index in group])["input_ids"]
            parts.append(encode(self.model, {**images, "input_ids": ids}, specs))
        order = [index for group in shapes.values() for index in group]
        begins = dict(zip(order, accumulate((prompts[index].images for index in order), initial=0)))
        numbers = [begins[index] + image for index, each in enumerate(prompts) for image in range(each.images)]
        return joined(parts).pick(numbers)

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
        sees = self.family.images_see_question
        if reuse is None:
            reuse = not aware and not inside and not sees and all(each.shared for each in prompts)
        elif reuse and sees:
            raise FoveateError(
                f"images of {self.family.title} see the question, so no questions can share an image's keys and values"
            )
        elif reuse and (aware or inside):
            why = "reads the question" if aware else "acts inside the decoder"
            raise FoveateError(f"{spec} {why}, so its questions can't share an image's keys and values")
        none = [0.0] * len(prompts)
        answered = Answered(
            [[""] * len(each.rows) for each in prompts],
            [[False] * len(each.rows) for each in prompts],
            none[:],
            none[:],
            none[:],
        )
        answered.spent.images = len(prompts)
        answered.spent.questions = sum(len(each.rows) for each in prompts)
        if reuse:
            images = ((each.shared, index) for index, each in enumerate(prompts))
            for batch in self._batches(images, len(prompts)):
                self._reusing(prompts, batch, spec, encoded, answered)
        else:
            rows = ((len(row), (index, n)) for index, each in enumerate(prompts) for n, row in enumerate(each.rows))
            for batch in self._batches(rows, PLAIN_ROWS):
                act = self._inside if inside else self._plainly
                act(prompts, batch, spec, encoded, answered)
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
        short = compress(self.model, inputs, spec, encoded.pick(_images_of(prompts, group)))
        spent.compressor += short.milliseconds["compressor"]
        spent.compressions += len(group)
        counts = _summed(prompts, group, [(image.before, image.after, image.after) for image in short.images])
        for index, (before, after, mean) in zip(group, counts, strict=True):
            answered.before[index], answered.after[index], answered.mean[index] = before, after, mean
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

        held = row_bytes(cache)
        at_once = self.batch or max(1, min(ROWS_AT_ONCE, CACHE_BYTES // held))
        rows = [(row, n) for row, index in enumerate(group) for n in range(len(prompts[index].rows))]

        def length(each: tuple[int, int]) -> int:
            asked = prompts[group[each[0]]]
            return len(asked.rows[each[1]]) - asked.shared

        columns = mask.shape[1] + max(map(length, rows)) + self.longest
        apart = bool(self.family.memory_kinds()) or columns > self.family.reach
        for batch in self._questions(rows, length, at_once, apart):
            of = torch.tensor([row for row, _ in batch], device=self.device)
            whole = [prompts[group[row]].rows[n] for row, n in batch]
            starts = [prompts[group[row]].shared for row, _ in batch]
            answers = self._continue(
                with_rows(cache, of), mask[of], positions[..., -1].index_select(-1, of), whole, starts, spent
            )
            for (row, n), text, cut in zip(batch, self._texts(answers), answers.cut, strict=True):
                answered.texts[group[row]][n] = text
                answered.cut[group[row]][n] = cut

    def _questions(
        self, rows: Iterable[tuple[int, int]], length: Callable[[tuple[int, int]], int], most: int, apart: bool
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of questions of similar length, so that there is little padding between image and question.

        Args:
            rows: what `length` takes.
            length: returns the tokens of a question.
            most: the most questions in a batch.
            apart: whether there is no padding at all, because it would change what the decoder's layers see of the
                image.
        """
        ordered = sorted(rows, key=length)
        groups = [list(group) for _, group in groupby(ordered, length)] if apart else [ordered]
        for group in groups:
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _continue(
        self,
        cache: Any,
        mask: Tensor,
        start: Tensor,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        spent: Spent,
    ) -> Answers:
        """Answer prompts whose beginning is in the cache.

        Args:
            cache: keys and values of R rows; it grows.
            mask: `(R, P)` int64, 0 where the beginning is padding.
            start: `(R,)` or `(axes, R)`, the position id of the first new token.
            rows: per row, the ids of its whole prompt.
            starts: per row, how many of these ids the cache stands for.
            spent: gets the time.
        """
        ends = [row[start:] for row, start in zip(rows, starts, strict=True)]
        longest = max(map(len, ends))
        ids = torch.tensor([[self.pad] * (longest - len(end)) + list(end) for end in ends], device=self.device)
        real = torch.tensor([[0] * (longest - len(end)) + [1] * len(end) for end in ends], device=self.device)
        positions = start[..., None] + (real.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.cat([mask, real], dim=1),
            "position_ids": positions,
            **cache_argument(self.model.forward, cache),
        }
        return self._decode(inputs, rows, spent)

    def _decode(
        self, inputs: dict[str, Any], rows: Sequence[Sequence[int]], spent: Spent, *, shrink: bool = True
    ) -> Answers:
        """Answer a batch of prompts, token by token.

        Args:
            inputs: of the first call of the model, with `attention_mask` over all columns; what the decoder's position
                ids go on from may be among them.
            rows: per row, the ids of the uncompressed prompt.
            spent: gets the time.
            shrink: whether rows whose answers have ended may leave the cache.
        """
        answers = self.decoding.answers(rows, self.device)
        open_rows = torch.arange(len(rows), device=self.device)
        mask: Tensor = inputs["attention_mask"]
        positions: Tensor | None = inputs.get("position_ids")
        for step in range(self.longest):
            began = now(self.devices)
            output = self.model(**inputs, use_cache=True, logits_to_keep=1)
            ids = answers.next(output.logits[:, -1], open_rows)
            going = answers.open(open_rows).nonzero().squeeze(1)
            milliseconds = (now(self.devices) - began) * 1e3
            if step == 0:
                spent.question += milliseconds
            else:
                spent.decode += milliseconds
            if not len(going):
                break
            cache = cache_of_output(output)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if positions is not None:
                positions = positions[..., -1:] + 1
            if shrink and len(going) <= len(open_rows) // 2:
                # Rows whose answers have ended are removed from the cache.
                cache = with_rows(cache, going)
                ids, mask, open_rows = ids[going], mask[going], open_rows[going]
                if positions is not None:
                    positions = positions.index_select(-2, going)
            inputs = {"input_ids": ids[:, None], "attention_mask": mask, **cache_argument(self.model.forward, cache)}
            if positions is not None:
                inputs["position_ids"] = positions
        return answers

    def _plainly(
        self,
        prompts: Sequence[Prompts],
        group: Sequence[tuple[int, int]],
        spec: Spec,
        encoded: Encoded,
        answered: Answered,
    ) -> None:
        """Answer whole prompts, compressed before the decoder."""
        spent = answered.spent
        rows = [prompts[index].rows[n] for index, n in group]
        asked = [index for index, _ in group]
        short = compress(self.model, self.padded(rows), spec, encoded.pick(_images_of(prompts, asked)))
        spent.compressor += short.milliseconds["compressor"]
        answers = self._decode(dict(short), rows, spent)
        counts = _summed(prompts, asked, [(image.before, image.after, image.after) for image in short.images])
        self._record(prompts, group, answers, counts, answered)

    def _inside(
        self,
        prompts: Sequence[Prompts],
        group: Sequence[tuple[int, int]],
        spec: Spec,
        encoded: Encoded,
        answered: Answered,
    ) -> None:
        """Answer whole prompts under `apply`, where steps inside the decoder act."""
        spent = answered.spent
        rows = [prompts[index].rows[n] for index, n in group]
        asked = [index for index, _ in group]
        inputs = self.padded(rows)
        picked = encoded.pick(_images_of(prompts, asked))
        if self.family.position_axes > 1:
            # Position ids need the other inputs that describe the images.
            without = ("pixel_values", self.family.video_inputs[0])
            inputs |= self.pixels((prompts[index] for index in asked), without=without)
        if any(layout.is_clip for layout in picked.layouts) and not picked.steps:
            # After a clip these models count differently in `generate` and in calls with a cache; this is `generate`.
            inputs["position_ids"] = compress(self.model, inputs, DENSE, picked)["position_ids"]
        inputs["mm_encoder_outputs"] = encoder_outputs(self.model, picked)
        with apply(self.model, spec, synchronise=True) as run:
            answers = self._decode(inputs, rows, spent, shrink=False)
        report = run.report()
        spent.compressor += report.milliseconds
        # Steps inside the decoder run during its prefill; their time is not counted twice.
        spent.question -= report.milliseconds
        found = [(image.before, image.after, image.mean_over_layers) for image in report.images]
        counts = _summed(prompts, asked, found)
        self._record(prompts, group, answers, counts, answered)

    def padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return prompts as the text inputs of one call, padded on the left, so that all end in the last column."""
        longest = max(map(len, rows))
        empty = [longest - len(row) for row in rows]
        ids = torch.tensor([[self.pad] * n + list(row) for n, row in zip(empty, rows)], device=self.device)
        mask = torch.tensor([[0] * n + [1] * len(row) for n, row in zip(empty, rows)], device=self.device)
        types = {name: self.family.token_types(ids) for name in self._types}
        return {"input_ids": ids, "attention_mask": mask, **types}

    def _texts(self, answers: Answers) -> list[str]:
        return self.processor.batch_decode(answers.ids(), skip_special_tokens=True)

    def _record(
        self,
        prompts: Sequence[Prompts],
        group: Sequence[tuple[int, int]],
        answers: Answers,
        counts: Sequence[tuple[int, int, float]],
        answered: Answered,
    ) -> None:
        """Store answers to single questions at their image and question.

        Args:
            prompts: of all pictures.
            group: per answer, the picture and the number of its question.
            answers: to these.
            counts: per answer, visual tokens of the full prompt, after the last step, and per decoder layer on average.
            answered: gets them; what questions of a picture differ in is averaged over them.
        """
        answered.spent.compressions += len(group)
        texts = self._texts(answers)
        for (index, n), text, cut, count in zip(group, texts, answers.cut, counts, strict=True):
            before, after, mean = count
            answered.texts[index][n] = text
            answered.cut[index][n] = cut
            answered.before[index] = before
            answered.after[index] += after / len(prompts[index].rows)
            answered.mean[index] += mean / len(prompts[index].rows)


def _images_of(prompts: Sequence[Prompts], pictures: Sequence[int]) -> list[int]:
    """Return the numbers of the images of some pictures, among those of all."""
    begins = list(accumulate((each.images for each in prompts), initial=0))
    return [begins[picture] + image for picture in pictures for image in range(prompts[picture].images)]


def _summed(
    prompts: Sequence[Prompts], pictures: Sequence[int], counts: Sequence[tuple[int, int, float]]
) -> list[tuple[int, int, float]]:
    """Return the counts of each picture from those of its images."""
    ends = list(accumulate((prompts[picture].images for picture in pictures), initial=0))
    parts = [counts[begin:end] for begin, end in pairwise(ends)]
    assert ends[-1] == len(counts)
    return [(sum(a for a, _, _ in part), sum(b for _, b, _ in part), sum(c for _, _, c in part)) for part in parts]


def _named(asked: TaskQuestion, picture: TaskImage | TaskClip) -> str:
    text = asked.text if len(asked.text) <= 60 else f"{asked.text[:57]}..."
    return f'the question "{text}" about {picture.name}'


def _after_last(ids: Sequence[int], family: Family) -> int:
    """Return the number of ids after the last visual token, and after the last one that visual tokens look ahead at."""
    row = torch.tensor([ids])
    last = family.placeholders(row)
    if family.block_types:
        last |= family.attention_blocks(family.token_types(row)) >= 0
    return len(ids) - 1 - int(last[0].nonzero().max())


def joined(parts: Sequence[Encoded]) -> Encoded:
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
