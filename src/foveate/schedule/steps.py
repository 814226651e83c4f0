"""Sort the steps of a spec by where they act, and refuse early what cannot be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from foveate.errors import FoveateError, KeepError
from foveate.families import Family, families_at
from foveate.fingerprint import model_fingerprint
from foveate.methods import Method, PixelMethod
from foveate.schedule.depth import scaled_layers
from foveate.schedule.encoder_layers import encoder_needs
from foveate.schedule.expected import ExpectedTokens
from foveate.schedule.resizing import resize_mode
from foveate.spec import Spec, Step, parse
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Place, Segment, Signal, Text

_ORDER = {"pixels": 0, "encoder": 1, "features": 2, "input": 3}


@dataclass(frozen=True)
class DepthStep:
    """A method at the input of one decoder layer.

    Attributes:
        layer: of the decoder, counted from zero; at least 1.
        method: what acts there.
    """

    layer: int
    method: Method


@dataclass(frozen=True)
class DecoderSteps:
    """What is known of an image's way through the decoder before its first layer runs.

    Attributes:
        remaining: what enters the decoder, as the layout tells.
        methods: what acts on it, per layer.
        reached: the layers where a step finds some token of it.
        left: content tokens behind the last step, at most.
    """

    remaining: ExpectedTokens
    methods: dict[int, Method]
    reached: tuple[int, ...]
    left: int


@dataclass(frozen=True)
class Schedule:
    """The steps of a spec, by place.

    Attributes:
        spec: the whole.
        pixels: the step before the encoder, or None.
        features: the steps between encoder and projector, in order.
        inputs: the steps between projector and decoder, in order.
        depth: the steps inside the decoder, first layer first.
        encoding: the written form of the steps before the encoder and inside it, "" for none.
        encoder: the step inside it, or None.
    """

    spec: Spec
    pixels: PixelMethod | None
    features: tuple[Method, ...]
    inputs: tuple[Method, ...]
    depth: tuple[DepthStep, ...]
    encoding: str
    encoder: Method | None = None
    _foreseen: dict[tuple[Layout, int | None], DecoderSteps] = field(default_factory=dict, compare=False, repr=False)

    @property
    def ahead(self) -> tuple[Method, ...]:
        """The steps between pixels and decoder, in order."""
        return (*(() if self.encoder is None else (self.encoder,)), *self.features, *self.inputs)

    def inside(self, arriving: int, layers: int) -> dict[int, Method]:
        """What acts at each decoder layer on an image of which `arriving` tokens enter a decoder of `layers` layers.

        Raises:
            KeepError: a mean over layers that is asked for can't be had.
        """
        places = [step.layer for step in self.depth]
        if not any(step.method.keep.mean is not None for step in self.depth):
            return {step.layer: step.method for step in self.depth}
        return dict(zip(places, self.depth[0].method.at_layers(places, arriving, layers), strict=True))

    def foresee(self, seen: Layout, arriving: int | None, layers: int) -> DecoderSteps:
        """What becomes of an image inside a decoder of `layers` layers; remembered, for many images have one layout.

        Args:
            seen: the layout that the encoder saw.
            arriving: how many of its tokens enter the decoder; None for all of them, where nothing acts ahead of it.
            layers: of the decoder.

        Raises:
            FoveateError: a step keeps per tile, and it isn't known how many tokens each tile has.
            KeepError: a step would keep more than arrives, or a mean over layers that is asked for can't be had.
        """
        found = self._foreseen.get((seen, arriving))
        if found is not None:
            return found
        remaining = ExpectedTokens.of(seen)
        left = remaining
        if arriving is not None:
            for method in self.ahead:
                remaining = remaining.after(method)
            left = replace(remaining, layout=Layout((Segment(1, 1, arriving),)))
        methods = self.inside(left.layout.content, layers)
        reached: list[int] = []
        for layer, method in methods.items():
            if not left.layout.content:
                break
            reached.append(layer)
            try:
                left = left.after(method)
            except KeepError as error:
                raise KeepError(f"{method} at layer {layer}: {error}") from None
        found = DecoderSteps(remaining, methods, tuple(reached), left.layout.content)
        self._foreseen[seen, arriving] = found
        return found

    @property
    def reads_text(self) -> bool:
        """Whether some method looks at the text of the prompt at `@input`."""
        return any(isinstance(signal, Text) for method in self.inputs for signal in method.needs)

    @property
    def encoder_signals(self) -> tuple[Signal, ...]:
        """What the methods ask of the encoder, each once."""
        methods = (*self.features, *self.inputs, *(step.method for step in self.depth))
        needs = (signal for method in methods for signal in method.needs)
        return tuple(dict.fromkeys(s for s in needs if isinstance(s, EncoderAttention | EncoderKeys)))


def schedule(spec: str | Spec, family: Family) -> Schedule:
    """Sort a spec's steps for a family.

    Raises:
        FoveateError: a step acts at a place that is not supported yet or that this decoder doesn't have, steps stand
            in another order than the model runs, or a method asks for a signal that the family lacks.
        KeepError: a step would keep more than an earlier one leaves, whatever the image.
        SpecError: the spec is malformed.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    pixels: list[PixelMethod] = []
    features: list[Method] = []
    inputs: list[Method] = []
    depth: list[DepthStep] = []
    encoder: list[Method] = []
    encoding: list[str] = []
    reached = 0
    for step in spec.steps:
        method = step.method
        method.check(step.places, lambda: _weights_of(family))
        # A mean over layers must wait until it is known how many tokens arrive.
        methods = method.at_layers(step.places, 0, 0) if method.keep.mean is None else (method,) * len(step.places)
        for place, method in zip(step.places, methods, strict=True):
            if place == 0:
                place = "input"
            rank = _rank(step, place, family)
            if rank < reached or (rank == reached and isinstance(place, int)):
                raise FoveateError(
                    f"{step} names layer {place} twice; each layer takes one step"
                    if rank == reached
                    else f"{step} stands behind a later place; write the steps of {spec} in the order they act"
                )
            reached = rank
            if (place == "pixels") != isinstance(method, PixelMethod):
                raise FoveateError(f"{method.name} cannot act at @{place}; its place is @{method.place}")
            if isinstance(method, PixelMethod):
                pixels.append(method)
                encoding.append(str(step))
                resize_mode(family, method)
                continue
            if place == "encoder":
                _check_inside(step, method, family)
                encoder.append(method)
                encoding.append(str(step))
                continue
            for signal in method.needs:
                # Text at the decoder's input is what the decoder's own embedding makes of it: every family has that.
                inside = isinstance(place, int) and family.gives_inside(signal)
                if not (isinstance(signal, Text) and place == "input") and not inside and not family.gives(signal):
                    raise FoveateError(f"{method.name} asks for {signal}, which {family.title} cannot give at @{place}")
            if isinstance(place, int):
                depth.append(DepthStep(place, method))
            else:
                (features if place == "features" else inputs).append(method)
    if (
        any(each.method.keep.mean is not None for each in depth)
        and sum(any(isinstance(place, int) and place for place in step.places) for step in spec.steps) > 1
    ):
        raise FoveateError(f"{spec} has a mean over layers, so that step must be the only one inside the decoder")
    if len(pixels) > 1:
        raise FoveateError("a spec has at most one step at @pixels; give the last size at once")
    if len(encoder) > 1:
        raise FoveateError("a spec has at most one step at @encoder, which acts in front of every layer there")
    _check_budgets(spec, (*encoder, *features, *inputs, *(each.method for each in depth)))
    return Schedule(
        spec,
        pixels[0] if pixels else None,
        tuple(features),
        tuple(inputs),
        tuple(depth),
        encoding="+".join(encoding),
        encoder=encoder[0] if encoder else None,
    )


def _check_budgets(spec: Spec, methods: Sequence[Method]) -> None:
    """Whether each step can find as many tokens as it keeps, as far as that is known before there is an image.

    Raises:
        KeepError: it can't.
    """
    left: ExpectedTokens | None = None
    for method in methods:
        tokens, mean = method.keep.tokens, method.keep.mean
        if left is None:
            # A number of tokens is the first thing that is known of an image of any size.
            if tokens is not None and method.per == "image":
                left = ExpectedTokens(Layout((Segment(1, 1, tokens),)), None, not method.ragged)
            continue
        most = left.layout.content
        if mean is not None and mean > most:
            raise KeepError(
                f"{spec}: a mean of {mean} tokens over layers, and no more than {most} arrive; ask for less"
            )
        # How many tokens each tile has is not known, and a tile with fewer than its budget keeps all.
        if mean is not None or method.per == "tile" or not most:
            continue
        try:
            left = left.after(method)
        except KeepError as error:
            raise KeepError(f"{spec}: {error}") from None


def _check_inside(step: Step, method: Method, family: Family) -> None:
    """Whether a method can act in front of the encoder's layers.

    Raises:
        FoveateError: it can't.
    """
    if family.encoder_reads < 1:
        raise FoveateError(
            f"{step} acts between the encoder's layers, and this {family.title} reads what comes before the second"
        )
    for signal in encoder_needs(method):
        if not isinstance(signal, EncoderAttention | EncoderKeys):
            raise FoveateError(f"{method.name} asks for {signal}, which nobody can give at @encoder")


def _weights_of(family: Family) -> str:
    """The fingerprint of the model; "" for a skeleton."""
    skeleton = any(weight.is_meta for weight in family.core.parameters())
    return "" if skeleton else model_fingerprint(family.core)


def _rank(step: Step, place: Place, family: Family) -> int:
    """When a place is reached, for comparing; a decoder layer comes behind all others.

    Raises:
        FoveateError: it can't be reached in this model.
    """
    if (where := "decoder" if isinstance(place, int) else place) in (*_ORDER, "decoder") and where not in family.places:
        if place == "encoder":
            raise FoveateError(
                f"{step} acts at @encoder, and in {family.title} nothing can: {family.outside_encoder}; use @features "
                f"or @input, or a model of {', '.join(families_at('encoder'))}"
            )
        known = " and ".join("the decoder's layers" if each == "decoder" else f"@{each}" for each in family.places)
        raise FoveateError(f"{step} acts at @{place}, and all that steps can reach in {family.title} is {known}")
    if isinstance(place, int):
        layers = len(family.decoder_layers)
        if place >= layers:
            raise FoveateError(
                f"{step} acts at layer {place}, and this decoder has {layers} layers; name one from 0 to {layers - 1}"
            )
        other = sorted(set(family.layer_kinds()[place:]) - {"full_attention", "sliding_attention"})
        if other:
            raise FoveateError(
                f"{step} would drop tokens that layers of {', '.join(other)} have taken into their memory already; "
                "use @input on this model"
            )
        if place and step.method.positions == "pack" and not family.turns_alike:
            raise FoveateError(
                f"{step} would give tokens new positions inside a decoder whose layers turn them by different angles; "
                "use positions=keep, or @input"
            )
        spread = sorted(family.devices)
        if place and len(spread) > 1:
            raise FoveateError(
                f"{step} acts inside a decoder whose layers lie on {', '.join(spread)}, and columns can't be cut "
                "across devices yet; use @input, or load the model onto one device"
            )
        return len(_ORDER) + place
    if step.method.place == "decoder":
        layers = ",".join(map(str, scaled_layers(step.method.layers, len(family.decoder_layers))))
        raise FoveateError(
            f"{step} acts inside the decoder; say at the input of which layers, for instance {step.method}@{layers}"
        )
    return _ORDER[place]
