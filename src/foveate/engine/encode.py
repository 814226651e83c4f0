"""Run a model's encoder once and keep what compression methods may ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.arguments import check_kind, listed
from foveate.engine.containers import images_of
from foveate.engine.encoder import mapped_signal, plan_inside
from foveate.engine.hooks import EncoderHooks, hooked
from foveate.engine.inputs import check_mapping, check_visual_inputs
from foveate.engine.modalities import CLIP, IMAGE, Item, brought, prompt_order, run_encoder
from foveate.engine.sharding import refuse_sharded
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import Capture, Family, family_of
from foveate.families.placement import weights_at_hand
from foveate.methods import PixelMethod
from foveate.numbers import Between, check_whole
from foveate.plan import Plan
from foveate.schedule import Schedule, schedule
from foveate.spec import SpecLike, as_spec, spec_list
from foveate.tokens import Layout, Pixels, Signal


@dataclass(frozen=True, eq=False)
class Encoded:
    """The images and clips of one prompt or batch, encoded once, for any number of specs and questions.

    They are in prompt order; a clip is one of the images.

    Attributes:
        layouts: the full layout of each image, as the prompt's placeholders count it.
        seen: the layout that the encoder saw; smaller than `layouts` after a step at `@pixels`.
        projected: per image `(N, D)`, the features at `@input`; fewer after a step at `@encoder`.
        companions: per image, other features that go with the same tokens, each `(N, D)`; empty for most families.
        structural: per image `(S, D)`, what stands at its structural tokens that are no text.
        features: per image `(N, D_encoder)`, the features at `@features`; None if no spec asked for them.
        signals: per signal, per image, its value: attention `(N,)`, keys `(N, D_key)`; zeros where a step at
            `@encoder` left nothing.
        inside: per image, the plan of a step at `@encoder` over the tokens of `seen`, a batch of one; empty if there
            was none.
        stacked: "image" and "video", if the model takes the features of its images or clips as one tensor, and not
            as a list.
        steps: the steps at `@pixels` and `@encoder` that ran, in their written form; "" for none.
        milliseconds: time of encoder and projector.
    """

    layouts: tuple[Layout, ...]
    seen: tuple[Layout, ...]
    projected: tuple[Tensor, ...]
    companions: tuple[tuple[Tensor, ...], ...]
    structural: tuple[Tensor, ...]
    features: tuple[Tensor, ...] | None
    signals: Mapping[Signal, tuple[Tensor, ...]]
    inside: tuple[Plan, ...] = ()
    stacked: frozenset[str] = frozenset()
    steps: str = ""
    milliseconds: float = 0.0

    def __len__(self) -> int:
        return len(self.layouts)

    def check(self, schedule: Schedule) -> None:
        """Check that they hold what a spec looks at.

        Raises:
            FoveateError: they were encoded for other specs.
        """
        check_kind("schedule", schedule, Schedule, "a Schedule")
        if self.steps != schedule.encoding:
            raise FoveateError(
                f"the images were encoded with {self.steps or 'no step'!r} at @pixels and @encoder, and the spec has "
                f"{schedule.encoding or 'no step'!r} there; encode them again for this spec"
            )
        lacking = [str(signal) for signal in schedule.encoder_signals if signal not in self.signals]
        if schedule.features and self.features is None:
            lacking.append("features before the projector")
        if lacking:
            raise FoveateError(
                f"{schedule.spec} looks at {', '.join(lacking)}, which the images were encoded without; encode them "
                "again with this spec in the list"
            )

    def pick(self, images: Sequence[int]) -> Encoded:
        """Return some of the images, in this order; an image may come more than once.

        Raises:
            FoveateError: there is no such image.
        """
        images = [
            check_whole("an image", image, Between(0, len(self) - 1)) for image in listed("images", images, "numbers")
        ]

        def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[image] for image in images)

        return replace(
            self,
            layouts=of(self.layouts),
            seen=of(self.seen),
            projected=of(self.projected),
            companions=of(self.companions),
            structural=of(self.structural),
            features=None if self.features is None else of(self.features),
            signals={signal: of(values) for signal, values in self.signals.items()},
            inside=of(self.inside) if self.inside else (),
        )


def encode(model: nn.Module, inputs: Mapping[str, Any], specs: SpecLike | Iterable[SpecLike] = ()) -> Encoded:
    """Encode the images of `inputs` once, for all of `specs`.

    Args:
        model: a model of a supported family.
        inputs: what its processor returned.
        specs: the specs that this will serve, one or several, each as text, a `Spec` or a method; what they look at
            (encoder attention, keys, features before the projector) is kept. Steps at `@pixels` and `@encoder` change
            what the encoder does, so they must be the same in all specs.

    Raises:
        FoveateError: no image is among the inputs, the specs have different steps at `@pixels` or `@encoder`, or one
            asks for a signal that the family lacks, or the model's weights are sharded.
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    check_mapping(inputs)
    check_visual_inputs(family, inputs)
    if not brought(family, inputs):
        raise FoveateError("there is no image to encode; pass what the processor returned for a prompt with images")
    refuse_sharded(model, family.core)
    schedules = [schedule(as_spec(spec), family) for spec in spec_list(specs)]
    if len({each.encoding for each in schedules}) > 1:
        raise FoveateError("specs with different steps at @pixels or @encoder need one encode() each")
    return encode_for(family, inputs, schedules)


def encode_for(family: Family, inputs: Mapping[str, Any], schedules: Sequence[Schedule]) -> Encoded:
    """Encode for schedules that are known already, of a model whose family is; see `encode`."""
    signals = tuple(dict.fromkeys(signal for each in schedules for signal in each.encoder_signals))
    features = any(each.features for each in schedules)
    pixels, inside = (schedules[0].pixels, schedules[0].encoder) if schedules else (None, None)
    device = family.device
    began = now(device)
    ids, inputs = inputs.get("input_ids"), moved(inputs, device)
    with weights_at_hand(family.core):
        captures: dict[str, Capture] = {}
        for name in brought(family, inputs):
            with hooked(EncoderHooks(family, signals, features, pixels, inside)):
                output = run_encoder(family, name, inputs)
            capture = images_of(output)
            assert isinstance(capture, Capture)
            note_form(capture, output)
            if name == CLIP:
                time_clips(family, capture, inputs)
            else:
                capture, _ = images_of_prompt(family, capture, range(len(capture.layouts)), ids, pixels)
            captures[name] = capture
        milliseconds = (now(device) - began) * 1e3
        parts = {name: encoded_from(family, capture, signals, features) for name, capture in captures.items()}
    items = prompt_order(family, ids, {name: capture.layouts for name, capture in captures.items()})
    encoded = joined(parts, items)
    return replace(encoded, steps=schedules[0].encoding if schedules else "", milliseconds=milliseconds)


def note_form(capture: Capture, output: Any) -> None:
    """Note whether a model returns features as one tensor or as a list: it takes what it returns."""
    capture.stacked = isinstance(output.pooler_output, torch.Tensor)


def time_clips(family: Family, capture: Capture, inputs: Mapping[str, Any]) -> None:
    """Write the times of frames into the layouts of captured clips; the encoder isn't told of them."""
    capture.layouts, capture.seen = (family.timed(layouts, inputs) for layouts in (capture.layouts, capture.seen))


def joined(parts: Mapping[str, Encoded], items: Sequence[Item]) -> Encoded:
    """Join images and clips that were encoded apart, in the order of `items`."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    first, second = parts[IMAGE], parts[CLIP]
    both = replace(
        first,
        layouts=first.layouts + second.layouts,
        seen=first.seen + second.seen,
        projected=first.projected + second.projected,
        companions=first.companions + second.companions,
        structural=first.structural + second.structural,
        features=None if first.features is None or second.features is None else first.features + second.features,
        signals={signal: values + second.signals[signal] for signal, values in first.signals.items()},
        stacked=first.stacked | second.stacked,
    )
    return both.pick([number + (name == CLIP) * len(first) for name, number in items])


def images_of_prompt(
    family: Family, capture: Capture, order: Sequence[int], input_ids: Tensor | None, pixels: PixelMethod | None
) -> tuple[Capture, Sequence[int]]:
    """Return the capture of a prompt's images, and their order in the prompt; see `Family.in_prompt`.

    Raises:
        FoveateError: the prompt groups what the encoder saw into images for which the step at `@pixels` asks for other
            sizes.
    """
    found, order = family.in_prompt(capture, order, input_ids)
    if pixels is not None and capture.sizes and found is not capture:
        asked = [family.shrunk_by(layout, pixels.shrink) for layout in found.layouts]
        entries = zip(capture.layouts, capture.sizes, strict=True)
        made = [family.shrunk(layout, size) for layout, size in entries if layout.segments]
        counts, made_counts = ({tile.count for each in layouts for tile in each.segments} for layouts in (asked, made))
        if counts != made_counts:
            raise FoveateError(
                f"{pixels} asks for tiles of another size where an image has several, and {family.title} shrinks them "
                "before the prompt tells how many; crops of one size come from a fraction, or a number per=tile"
            )
    return found, order


def encoded_from(family: Family, capture: Capture, signals: Sequence[Signal], features: bool) -> Encoded:
    """Turn what was captured into features and signals per image.

    Raises:
        FoveateError: features of an image are NaN or infinite.
    """
    encoded = encoded_unchecked(family, capture, signals, features)
    _refuse_what_is_not_finite(encoded.projected)
    return encoded


def encoded_unchecked(family: Family, capture: Capture, signals: Sequence[Signal], features: bool) -> Encoded:
    """Do the same without a look at the numbers, which would wait for an accelerator."""
    inside = plan_inside(capture)
    with torch.no_grad():
        answers = {
            signal: family.pixels(capture) if isinstance(signal, Pixels) else family.encoder_signal(signal, capture)
            for signal in signals
        }
        if inside is not None:
            answers = {signal: mapped_signal(capture, signal, each, family) for signal, each in answers.items()}
    return Encoded(
        layouts=capture.layouts,
        seen=capture.seen,
        projected=family.projected(capture),
        companions=family.companions(capture),
        structural=family.structural(capture),
        features=family.features(capture) if features else None,
        signals=answers,
        inside=() if inside is None else tuple(inside.image(number) for number in range(len(capture.layouts))),
        stacked=_stacked(capture),
    )


def _stacked(capture: Capture) -> frozenset[str]:
    clips = any(layout.is_clip for layout in capture.layouts)
    return frozenset({CLIP if clips else IMAGE} if capture.stacked else ())


@torch.no_grad()
def _refuse_what_is_not_finite(features: Sequence[Tensor]) -> None:
    """Refuse features that a method would sort and sum silently. On an accelerator the host waits here once.

    Raises:
        FoveateError: an image has features that are NaN or infinite.
    """
    # A sum is not finite if any summand is not; float32 holds the sum of any sensible features.
    sums = torch.stack([each.sum(dtype=torch.promote_types(each.dtype, torch.float32)) for each in features]).tolist()
    for image in (number for number, total in enumerate(sums) if not math.isfinite(total)):
        wrong = int((~features[image].isfinite()).any(dim=-1).sum())
        if wrong:
            kind = "NaN" if features[image].isnan().any() else "infinite"
            raise FoveateError(
                f"image {image} (counted from 0) has {kind} features, in {wrong} of its {features[image].shape[0]} "
                "tokens; look at its pixel_values, and at the dtype: float16 overflows where bfloat16 does not"
            )


def moved(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a prompt's inputs on a device, such as `family.device`; what is no tensor stays."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
