"""A model in an inference server, and the specs that can be applied to its images there.

A server counts the tokens of an image before its encoder runs, and keeps the result of the encoder for the next
question about the same image. So a spec can be served if it acts between encoder and decoder, if the layout alone tells
how many tokens it leaves, and if it doesn't read the question. Everything else is refused, with the reason. A server
that knows an encoded image by the text of its prompt, too, and so encodes it anew for every question, may serve methods
that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from foveate.arguments import check_kind
from foveate.engine import CompressedImage
from foveate.engine.encode import Encoded, encoded_unchecked
from foveate.engine.images import plan_images
from foveate.engine.prompt import reaches_of
from foveate.errors import FoveateError
from foveate.families import Capture, Family, family_class, vlm_config
from foveate.families.config_fields import PlainConfig, read_number
from foveate.layout import Layout, one_row
from foveate.method import Method
from foveate.schedule import Schedule, schedule, tokens_entering
from foveate.schedule.expected import ExpectedTokens, kept_slots
from foveate.spec import Spec, SpecLike, Step, as_spec
from foveate.tokens import EncoderAttention, EncoderKeys, Place, Text

DENSE = "dense"
"""What stands for no step at all."""


class ServedModel:
    """A model in an inference server: its family, and what the server can do.

    Args:
        config: of the model: an object of transformers, or a mapping as config.json holds it.
        server: the name of the server in texts.
        places: where the server lets steps act, of "features" and "input".
        moves_positions: whether tokens can keep their position ids where the layout tells them; if not, they are
            numbered anew ("pack").
        signals: whether the server gives attention and keys of the encoder.
        encoder_layers: how many encoder layers the server loads, first layer first; None for all.
        per_question: whether the server gives the text of the prompt, and encodes an image anew for every other text.
        question_option: how a server that isn't told to do that can be, for texts; "" if it can't.

    Raises:
        UnsupportedFamily: no family takes the model.
        FoveateError: the configuration lacks a field.
    """

    def __init__(
        self,
        config: Any,
        *,
        server: str = "the server",
        places: Collection[Place] = ("features", "input"),
        moves_positions: bool = False,
        signals: bool = True,
        encoder_layers: int | None = None,
        per_question: bool = False,
        question_option: str = "",
    ) -> None:
        config = vlm_config(config)
        if isinstance(config, Mapping):
            config = PlainConfig.of(config)
        self.family: Family = family_class(config).of_config(config)
        self.server = server
        self.places = tuple(places)
        self.moves_positions = moves_positions
        self.signals = signals
        self.encoder_layers = encoder_layers
        self.per_question = per_question
        self.question_option = question_option
        self._specs: Callable[[str], ServedSpec] = lru_cache(maxsize=256)(self._made)

    def bind(self, core: nn.Module) -> None:
        """Give the family the modules of the server's model.

        Args:
            core: has the modules that the family's `feature_module`, `encoder_attentions` and `structural` look for,
                under the names that they have in transformers.
        """
        self.family.core = core

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the layout of an image of `height` x `width` pixels, as the model's processor prepares it.

        Raises:
            FoveateError: an image of this size leaves no token.
        """
        return self.family.image_layout(height, width)

    def spec(self, spec: SpecLike) -> ServedSpec:
        """Return a spec as the server applies it; "dense" is no step at all.

        Raises:
            SpecError: the spec is malformed.
            FoveateError: the family or the server can't do it.
        """
        if isinstance(spec, str) and spec.strip() == DENSE:
            return self._specs(DENSE)
        return self._specs(str(as_spec(spec)))

    def _made(self, text: str) -> ServedSpec:
        spec = Spec(()) if text == DENSE else as_spec(text)
        for step in spec.steps:
            for place in step.places:
                self._check_place(step, place)
        steps = schedule(spec, self.family)
        for method in steps.before_decoder:
            self._check_method(method)
        return ServedSpec(text, self.family, steps)

    def _check_place(self, step: Step, place: Place) -> None:
        """Check that a step acts between encoder and decoder.

        Raises:
            FoveateError: it doesn't.
        """
        server, here = self.server, " or ".join(f"@{name}" for name in self.places)
        if place == "pixels":
            raise FoveateError(
                f"{step} acts at @pixels, and {server} has prepared the image by then; give its processor a smaller "
                f"size, or use a method at {here}"
            )
        if place == "encoder":
            raise FoveateError(f"{step} acts at @encoder, and {server} runs the encoder as a whole; use {here}")
        if place == "features" and "features" not in self.places:
            raise FoveateError(f"{step} acts at @features, which {server} doesn't show; use {here}")
        if place == "decoder" or (isinstance(place, int) and place > 0):
            raise FoveateError(
                f"{step} acts inside the decoder, whose layers share one cache in {server}; use a method at {here}"
            )

    def _check_method(self, method: Method) -> None:
        """Check that the layout alone tells how many tokens a method leaves, and that it needs no question.

        Raises:
            FoveateError: it doesn't, it needs one, or a signal or position ids that the server doesn't give.
        """
        server = self.server
        if method.query_aware and not self.per_question:
            raise FoveateError(
                f"{method} reads the question, and {server} keeps an encoded image for every question about it; use a "
                "method that reads the image alone, such as cluster"
                + (f", or {self.question_option}" if self.question_option else "")
            )
        if method.ragged:
            raise FoveateError(
                f"{method} lets the content decide how many tokens remain, and {server} must know that before it sees "
                "a pixel; write a number or a fraction, or use a method with a fixed count, such as cluster"
            )
        if method.positions == "keep" and not method.keeps_all():
            why = "counts position ids itself" if not self.moves_positions else "must know them before the encoder runs"
            if not (self.moves_positions and method.fixed):
                raise FoveateError(f"{method} keeps position ids, and {server} {why}; write {method}:positions=pack")
        for signal in method.needs:
            if isinstance(signal, Text) and self.per_question:
                continue
            if not isinstance(signal, EncoderAttention | EncoderKeys) or not self.signals:
                raise FoveateError(f"{method} asks for {signal}, which {server} doesn't give for {self.family.title}")
            self._check_layer(method, signal.layer)

    def _check_layer(self, method: Method, layer: int) -> None:
        """Check that the server loads an encoder layer.

        Raises:
            FoveateError: it doesn't.
        """
        if self.encoder_layers is None:
            return
        depth = read_number(self.family.config.vision_config, "num_hidden_layers", "depth")
        if layer % depth >= self.encoder_layers:
            raise FoveateError(
                f"{method} reads encoder layer {layer} of {depth}, and {self.server} loads the first "
                f"{self.encoder_layers}, up to the one whose output becomes features"
            )


@dataclass(frozen=True)
class ServedPositions:
    """The position ids of what is left of one image or clip.

    Attributes:
        ids: `(axes, M)` int64, counted from where each run of its columns begins.
        spans: per run, by how much it raises the positions of what follows it, as transformers has it.
        reaches: per run, one more than the largest of its positions before anything was dropped; more than its span
            where a clip has more frames than rows and columns.
    """

    ids: Tensor
    spans: tuple[int, ...]
    reaches: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ServedSpec:
    """A spec that a server can apply to images of one model.

    Attributes:
        text: its canonical written form; "dense" for no step.
        family: of the model.
        schedule: its steps.
    """

    text: str
    family: Family
    schedule: Schedule

    @property
    def is_dense(self) -> bool:
        """Whether every token stays as it is, because there is no step."""
        return not self.schedule.before_decoder

    @property
    def reads_text(self) -> bool:
        """Whether a step reads the text of the prompt."""
        return self.schedule.reads_text

    def check_pictures(self) -> None:
        """Check that a request with images and without any clip can be served.

        Raises:
            FoveateError: a step works on the frames of clips.
        """
        self.schedule.check_clips((one_row(1),))

    def count(self, layout: Layout) -> int:
        """Return how many visual tokens of one image or clip enter the decoder, structural ones included.

        Raises:
            KeepError: the image has fewer tokens than a step keeps.
            FoveateError: the content decides how many structural tokens stay.
        """
        check_kind("layout", layout, Layout, "a Layout")
        fewest, most = tokens_entering(self.schedule.for_layout(layout), self.family, layout)
        if fewest != most:
            raise FoveateError(
                f"{self.text} leaves {fewest} to {most} tokens of this image, because the content decides which rows "
                "of it keep their newline; use a grid, such as pool2d or stride with positions=pack"
            )
        return most

    def run_counts(self, layout: Layout) -> tuple[int, ...] | None:
        """Return how many tokens enter the decoder of each run of an image's or clip's columns, which text parts.

        None if the content decides how they are shared among the runs.

        Raises:
            KeepError: the image has fewer tokens than a step keeps.
            FoveateError: the content decides how many structural tokens stay.
        """
        count, runs, methods = self.count(layout), layout.run_lengths, self._acting(layout)
        if len(runs) == 1:
            return (count,)
        if count == layout.total:
            return runs
        if all(method.fixed for method in methods):
            return tuple(layout.run_of[self._kept(layout)].bincount(minlength=len(runs)).tolist())
        parts = left = ExpectedTokens.of(layout)
        for method in methods:
            left = left.after(method)
        # Budgets of frames tell it where each frame is a run.
        if left.tiles is None or tuple(part.content for part in parts.tiles or ()) != runs:
            return None
        return tuple(part.content for part in left.tiles)

    def _acting(self, layout: Layout) -> list[Method]:
        """Return the steps that change anything about an image or clip."""
        return [method for method in self.schedule.for_layout(layout).before_decoder if not method.keeps_all()]

    def _kept(self, layout: Layout) -> Tensor:
        """Return the columns of an image that steps keep which are all `fixed`: `(M,)` int64."""
        return layout.placed(kept_slots(self._acting(layout), layout))[0]

    def positions(self, layout: Layout) -> ServedPositions:
        """Return the position ids of what is left of one image or clip, before any encoder runs.

        Raises:
            KeepError: the image has fewer tokens than a step keeps.
            FoveateError: the content decides how many tokens of each of its runs stay.
        """
        counts, methods = self.run_counts(layout), self._acting(layout)
        if counts is None:
            raise FoveateError(
                f"{self.text} lets the content decide how many tokens of each of {len(layout.runs)} frames or tiles "
                "stay, so their positions are known only afterwards; keep a number per=frame, or a grid"
            )
        ids = own = self.family.image_positions(layout)
        if counts != layout.run_lengths:
            if any(method.positions == "pack" for method in methods):
                numbers = torch.cat([torch.arange(count) for count in counts])
                return ServedPositions(numbers.expand(ids.shape[0], -1), counts, counts)
            ids = own[:, self._kept(layout)]
        return ServedPositions(ids, self.family.image_spans(layout), reaches_of(own, layout))

    def encoded(self, capture: Capture, others: Sequence[ServedSpec] = ()) -> Encoded:
        """Take what this spec and others look at from one run of the server's encoder.

        Args:
            capture: what the server recorded, in the form in which the family's `features`, `projected` and
                `encoder_signal` read it.
            others: further specs that the same images are encoded for.
        """
        schedules = [spec.schedule for spec in (self, *others)]
        signals = tuple(dict.fromkeys(signal for each in schedules for signal in each.encoder_signals))
        return encoded_unchecked(self.family, capture, signals, any(each.features for each in schedules))

    def compress(self, encoded: Encoded, texts: Sequence[Tensor] | None = None) -> list[CompressedImage]:
        """Make and apply the plans of images: what is left of each, with features `(M, D)` and positions.

        Args:
            encoded: the images.
            texts: per image `(T, D)`, all text of its prompt as the decoder gets it; for a spec that reads it.

        Raises:
            FoveateError: an image that is to be compressed by its text has none.
        """
        return plan_images(self.family, self.schedule, encoded, texts if self.reads_text else None)


def compress_each(
    specs: Sequence[ServedSpec], capture: Capture, texts: Sequence[Tensor] | None = None
) -> list[CompressedImage]:
    """Apply to each image of a batch the spec of its request; images of one spec and layout are planned together.

    Args:
        specs: per image; all of one model.
        capture: what the server recorded while its encoder ran on the batch.
        texts: per image `(T, D)`, all text of its prompt as the decoder gets it; None if no spec reads it.
    """
    different = list(dict.fromkeys(specs))
    encoded = different[0].encoded(capture, different[1:])
    images: dict[int, CompressedImage] = {}
    for spec in different:
        members = [number for number, each in enumerate(specs) if each is spec]
        own = None if texts is None else [texts[number] for number in members]
        images |= dict(zip(members, spec.compress(encoded.pick(members), own), strict=True))
    return [images[number] for number in range(len(specs))]
