"""Answer about pictures under any spec: each picture is encoded once, and every answer is remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from PIL import Image

from foveate.asking import seen_part, token_side
from foveate.decoding import Decoding
from foveate.devices import devices_of, placement_of
from foveate.engine import apply, encoder_outputs, timed
from foveate.engine.encode import Encoded, encode_for, moved
from foveate.engine.report import ImagePlans
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.layout import Layout
from foveate.listing import listing
from foveate.plan import Plan
from foveate.play.pictures import Picture
from foveate.prompts import check_question
from foveate.schedule import Schedule, schedule, tokens_after
from foveate.spec import Spec, as_spec
from foveate.transformers_api import row_bytes
from foveate.visual_prompts import VisualPrompt, visual_prompt

__all__ = ["Loyalty", "Player", "Reply"]

_PICTURES: Final = 24
"""Encoded pictures that are kept, the latest ones."""
_ANSWERS: Final = 2_000


@dataclass(frozen=True)
class Reply:
    """An answer and what it cost. Times are milliseconds of this one run.

    Attributes:
        spec: in its written form; "dense" for none.
        text: the answer.
        before: visual tokens of the whole prompt.
        after: visual tokens after the last step.
        layers: visual tokens in each decoder layer.
        encoder: time of the encoder, once for the picture.
        encodings: how often the encoder has run for this picture before this answer was there.
        own_encoding: whether the spec changes what the encoder does, so that the picture is encoded for it alone.
        compressor: time of foveate.
        prefill: time of the decoder over the prompt.
        decode: time of the decoder over the answer.
        waited: time until this answer was there, without the encoder.
        cache: bytes of keys and values after the answer.
        new_tokens: tokens of the answer.
        plans: for the image, or for each image of the prompt, what became of its tokens; () if dense.
    """

    spec: str
    text: str
    before: int
    after: int
    layers: tuple[float, ...]
    encoder: float
    encodings: int
    own_encoding: bool
    compressor: float
    prefill: float
    decode: float
    waited: float
    cache: int
    new_tokens: int
    plans: tuple[ImagePlans, ...] = field(default=(), repr=False)

    @property
    def mean_over_layers(self) -> float:
        """Visual tokens per decoder layer, averaged over layers."""
        return sum(self.layers) / len(self.layers)

    @property
    def total(self) -> float:
        """Time of all parts."""
        return self.encoder + self.compressor + self.prefill + self.decode


@dataclass(frozen=True)
class Loyalty:
    """The answers of a spec to all questions of a picture.

    Attributes:
        asked: questions.
        same: how many answers equal the dense model's.
        right: how many are right.
        dense_right: how many of the dense model's are.
    """

    asked: int
    same: int
    right: int
    dense_right: int


class Player:
    """A model that answers about pictures.

    Several threads may ask at once: since a spec is applied to the model for all of them, they wait for each other.

    Args:
        model: of a supported family.
        processor: its processor.
        title: what the page calls it.
        max_new_tokens: the longest answer.

    Raises:
        UnsupportedFamily: the model is of no supported family.
        FoveateError: its generation configuration can't be used.
    """

    def __init__(self, model: Any, processor: Any, title: str, max_new_tokens: int = 16) -> None:
        self.model, self.processor, self.title, self.longest = model, processor, title, max_new_tokens
        self.family = family_of(model)
        self.where = placement_of(model).title
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self._devices = devices_of(model)
        self._decoding = Decoding(
            model, self.family.device, processor.tokenizer, max_new_tokens, beams=True
        ).generate_arguments()
        self._lock = threading.RLock()
        self._encoded: OrderedDict[tuple[str, str], Encoded] = OrderedDict()
        self._runs: OrderedDict[str, int] = OrderedDict()
        # Remembered for each instance: `lru_cache` on a method would keep every instance alive.
        self._prompt: Callable[[Picture, str], VisualPrompt] = lru_cache(_PICTURES)(self._make_prompt)
        self._reply: Callable[[Picture, str, str], Reply] = lru_cache(_ANSWERS)(self._make_reply)

    def alone(self) -> AbstractContextManager[Any]:
        """Return a context in which no other thread uses the model."""
        return self._lock

    @property
    def depth(self) -> int:
        """How many layers the decoder has."""
        return self.family.decoder_depth

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """What methods look at, as far as this model gives it: so a picture is encoded once for all of them."""
        found: list[Schedule] = []
        for card in listing():
            if card.place in ("decoder", "pixels", "encoder"):
                continue
            for text in (f"{card.name}:0.5", card.name):
                try:
                    found.append(schedule(as_spec(text), self.family))
                except FoveateError:
                    continue
                break
        return tuple(found)

    # What is asked about

    def prompt(self, picture: Picture, question: str) -> VisualPrompt:
        """Return the prompt of a question about a picture.

        Raises:
            FoveateError: the question can't be asked, or the model takes no such picture.
        """
        with self._lock:
            return self._prompt(picture, check_question(question))

    def _make_prompt(self, picture: Picture, question: str) -> VisualPrompt:
        found = visual_prompt(self.family, self.processor, picture.visual, question)
        longest = getattr(self.family.config.get_text_config(), "max_position_embeddings", None)
        length = int(found.inputs["input_ids"].shape[1])
        if longest is not None and length + self.longest > longest:
            frames = f"{picture.title} has {len(picture.frames)} frames: " if picture.is_clip else ""
            raise FoveateError(
                f"{frames}prompt and answer take {length} + {self.longest} tokens and the model has room for "
                f"{longest}; {'take a shorter clip' if picture.is_clip else 'take a smaller picture'}, or shorten the "
                "question"
            )
        return found

    def layouts(self, picture: Picture) -> tuple[Layout, ...]:
        """Return the layout of the picture, of the clip, or of each frame where frames are images."""
        return self.prompt(picture, "?").layouts

    def tokens(self, picture: Picture) -> int:
        """Return the content tokens that a budget is a part of: of the picture, of a clip or of each of its frames."""
        return max(layout.content for layout in self.layouts(picture))

    def takes_clips(self, picture: Picture) -> bool:
        """Return whether methods for clips can work on this picture."""
        return any(layout.is_clip for layout in self.layouts(picture))

    def frames(self, picture: Picture) -> list[Image.Image]:
        """Return what the encoder sees of the picture, or of each frame of the clip."""
        of_clip = picture.is_clip and self.takes_clips(picture) and hasattr(self.processor, "video_processor")
        return [seen_part(self.processor, frame, of_clip=of_clip) for frame in picture.frames]

    @property
    def patch(self) -> int:
        """Pixels of the model's input along one side of a token."""
        return token_side(self.model.config)

    # Encoding

    def encoded(self, picture: Picture, question: str, steps: Sequence[Schedule] = ()) -> Encoded:
        """Return the encoded picture: the encoder runs only the first time, or for what it wasn't asked before.

        Args:
            picture: what is encoded.
            question: of the prompt, since it says which crops are one image.
            steps: of the specs that will be applied.
        """
        with self._lock:
            return self._encode(picture, question, steps)

    @torch.inference_mode()
    def _encode(self, picture: Picture, question: str, steps: Sequence[Schedule]) -> Encoded:
        encoding = steps[0].encoding if steps else ""
        key = (picture.key, encoding)
        known = self._encoded.get(key)
        if known is not None:
            self._encoded.move_to_end(key)
            try:
                for each in steps:
                    known.check(each)
            except FoveateError:
                known = None
            else:
                return known
        wanted = [*steps, *(self.schedules if not encoding else ())]
        made = encode_for(self.family, self.prompt(picture, question).inputs, wanted)
        self._encoded[key] = made
        self._runs[picture.key] = self._runs.pop(picture.key, 0) + 1
        for kept in (self._encoded, self._runs):
            while len(kept) > _PICTURES:
                kept.popitem(last=False)
        return made

    def encoded_inputs(self, prompt: VisualPrompt, encoded: Encoded) -> dict[str, Any]:
        """Return what the model is called with: a prompt without its pixels, and what the encoder made of them."""
        pixels = {*self.family.pixel_inputs, *self.family.video_inputs}
        rest = {name: each for name, each in prompt.inputs.items() if name not in pixels}
        return {**moved(rest, self.family.device), "mm_encoder_outputs": encoder_outputs(self.model, encoded)}

    # Answers

    def ask(self, picture: Picture, question: str, spec: str = "") -> Reply:
        """Answer a question about a picture.

        Args:
            picture: the picture or clip.
            question: text.
            spec: how to compress; "" is dense.

        Raises:
            SpecError: the spec can't be read.
            FoveateError: the spec can't be done on this picture, or the question can't be asked.
        """
        with self._lock:
            return self._reply(picture, check_question(question), str(as_spec(spec)) if spec.strip() else "")

    @torch.inference_mode()
    def _make_reply(self, picture: Picture, question: str, text: str) -> Reply:
        spec = as_spec(text) if text else None
        steps = schedule(spec or Spec(()), self.family)
        prompt = self.prompt(picture, question)
        if spec is not None:
            for layout in dict.fromkeys(prompt.layouts):
                tokens_after(spec, self.family, layout)
        encoded = self.encoded(picture, question, [steps])
        inputs = self.encoded_inputs(prompt, encoded)
        began = now(self._devices)
        applied = nullcontext() if spec is None else apply(self.model, spec, synchronise=True)
        with applied as run, timed(self.model) as times:
            made = self.model.generate(
                **inputs,
                **{**self._decoding, "return_dict_in_generate": True},
            )
        waited = (now(self._devices) - began) * 1e3
        new = made.sequences[0, inputs["input_ids"].shape[1] :]
        before = sum(layout.total for layout in prompt.layouts)
        report = None if run is None else run.report()
        layers = [float(before)] * self.depth
        if report is not None:
            layers = [float(sum(each)) for each in zip(*(image.layers for image in report.images), strict=True)]
        return Reply(
            spec="dense" if report is None else report.spec,
            text=self.processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
            before=before,
            after=before if report is None else report.after,
            layers=tuple(layers),
            encoder=encoded.milliseconds,
            encodings=self._runs.get(picture.key, 1),
            own_encoding=bool(steps.encoding),
            compressor=0.0 if report is None else report.milliseconds,
            # Steps inside the decoder are counted as the compressor's time, not as prefill.
            prefill=times.prefill - (0.0 if report is None else report.inside),
            decode=times.decode,
            waited=waited,
            cache=row_bytes(made.past_key_values),
            new_tokens=int(new.shape[0]),
            plans=() if run is None else run.plans,
        )

    def loyalty(self, picture: Picture, spec: str) -> Loyalty:
        """Ask all questions of a generated picture, dense and compressed.

        Raises:
            SpecError: the spec can't be read.
            FoveateError: the spec can't be done on this picture, or no questions belong to it.
        """
        if not picture.questions:
            raise FoveateError("only generated pictures have questions with answers; choose an example")
        dense = [self.ask(picture, text).text for text, _ in picture.questions]
        short = [self.ask(picture, text, spec).text for text, _ in picture.questions]
        answers = [answer for _, answer in picture.questions]
        return Loyalty(
            asked=len(answers),
            same=sum(one == other for one, other in zip(short, dense, strict=True)),
            right=sum(one == answer for one, answer in zip(short, answers, strict=True)),
            dense_right=sum(one == answer for one, answer in zip(dense, answers, strict=True)),
        )

    def plans(self, picture: Picture, reply: Reply, layer: int = -1) -> tuple[tuple[Layout, Layout, Plan | None], ...]:
        """Return, for each image of a prompt, its layout, the one that the encoder saw, and its plan at a layer."""
        if not reply.plans:
            return tuple((layout, layout, None) for layout in self.layouts(picture))
        return tuple((each.layout, each.seen, each.plan(layer)) for each in reply.plans)


class Players:
    """The models of a page: one for pictures, and where it can't take clips, another for these.

    Args:
        pictures: answers about pictures, and about clips unless `load_clips` says otherwise.
        load_clips: loads the one for clips when the first clip comes; None is the same.
    """

    def __init__(self, pictures: Player, load_clips: Callable[[], Player] | None = None) -> None:
        self.pictures, self._load, self._lock = pictures, load_clips, threading.Lock()
        self._clips: Player | None = None

    def of(self, picture: Picture) -> Player:
        """Return the one that answers about a picture."""
        if not picture.is_clip or self._load is None:
            return self.pictures
        with self._lock:
            if self._clips is None:
                self._clips = self._load()
        return self._clips
