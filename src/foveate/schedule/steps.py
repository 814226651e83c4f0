"""Sort the steps of a spec by where they act in a model, and refuse what cannot be done before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TypeAlias

from foveate.errors import FoveateError, KeepError
from foveate.families import Family, families_at
from foveate.fingerprint import model_fingerprint
from foveate.layout import one_row
from foveate.methods import Method, PixelMethod
from foveate.methods.stride import Stride
from foveate.numbers import MOST
from foveate.schedule.depth import scaled_layers
from foveate.schedule.encoder_layers import encoder_needs
from foveate.schedule.expected import ExpectedTokens
from foveate.schedule.resizing import resize_mode
from foveate.spec import Spec, Step, as_spec
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Pixels, Place, Signal, Text

SpecLike: TypeAlias = "str | Spec | Step | Method | Sequence[SpecLike]"
"""A spec as text, a method object, a step, a `Spec`, or a list of these, whose steps act one after another."""

# The places in front of the decoder, in the order in which a model reaches them.
_PLACES = ("pixels", "encoder", "features", "input")

_LAYER_OPTIONS = ("layer", "early")
"""Options of methods that name encoder layers."""


@dataclass(frozen=True)
class LayerStep:
    """A method at the input of one decoder layer.

    Attributes:
        layer: number of the decoder layer, counted from zero; at least 1.
        method: that acts there.
    """

    layer: int
    method: Method


@dataclass(frozen=True)
class DecoderSteps:
    """The steps inside the decoder for images of one layout, computed before the first layer runs.

    Attributes:
        entering: the tokens that enter the decoder.
        methods: the method of each step, by layer.
        reached_layers: the layers whose step finds at least one token of the image.
        kept: content tokens after the last step; the most, if the content decides.
    """

    entering: ExpectedTokens
    methods: dict[int, Method]
    reached_layers: tuple[int, ...]
    kept: int


@dataclass(frozen=True)
class Schedule:
    """The steps of a spec, sorted by where they act.

    Attributes:
        spec: all steps.
        pixels: the step before the encoder, or None.
        features: the steps between encoder and projector, in order.
        inputs: the steps between projector and decoder, in order.
        layers: the steps inside the decoder, first layer first.
        encoding: the written form of the steps before and inside the encoder; "" without such steps.
        encoder: the step inside the encoder, or None.
    """

    spec: Spec
    pixels: PixelMethod | None
    features: tuple[Method, ...]
    inputs: tuple[Method, ...]
    layers: tuple[LayerStep, ...]
    encoding: str
    encoder: Method | None = None
    _decoder_steps: dict[tuple[Layout, int | None], DecoderSteps] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def for_pictures(self) -> Schedule:
        """The schedule for a picture beside a clip: steps that work on the frames of clips keep all of it."""

        def of(methods: Iterable[Method]) -> tuple[Method, ...]:
            return tuple(Stride(positions=each.positions) if each.temporal else each for each in methods)

        layers = zip(self.layers, of(step.method for step in self.layers), strict=True)
        return replace(
            self,
            features=of(self.features),
            inputs=of(self.inputs),
            layers=tuple(LayerStep(step.layer, method) for step, method in layers),
            _decoder_steps={},
        )

    def for_layout(self, layout: Layout) -> Schedule:
        """Return the schedule for an image or clip of this layout, which stands in a prompt with a clip."""
        return self.for_pictures if layout.is_still else self

    def check_clips(self, layouts: Sequence[Layout]) -> None:
        """Check that a prompt that has images has a clip, if a step works on the frames of clips.

        Raises:
            FoveateError: it has none.
        """
        if not layouts or not all(layout.is_still for layout in layouts):
            return
        for method in (*self.features, *self.inputs, *(step.method for step in self.layers)):
            method.check_frames(layouts[0])

    @property
    def before_decoder(self) -> tuple[Method, ...]:
        """The steps after `@pixels` and in front of the decoder, in order."""
        return (*(() if self.encoder is None else (self.encoder,)), *self.features, *self.inputs)

    def layer_methods(self, arriving: int, depth: int) -> dict[int, Method]:
        """Return the method at each decoder layer that has a step, with a plain keep.

        Args:
            arriving: tokens of the image that enter the decoder.
            depth: the number of decoder layers.

        Raises:
            KeepError: the layers of the step do not allow the mean over layers that it asks for.
        """
        places = [step.layer for step in self.layers]
        if not any(step.method.keep.mean is not None for step in self.layers):
            return {step.layer: step.method for step in self.layers}
        return dict(zip(places, self.layers[0].method.at_layers(places, arriving, depth), strict=True))

    def decoder_steps(self, seen: Layout, arriving: int | None, depth: int) -> DecoderSteps:
        """Return the steps inside the decoder for images of one layout; cached, since many images have one layout.

        Args:
            seen: the layout that the encoder saw.
            arriving: how many tokens of the image enter the decoder; None for all, where no step acts before it.
            depth: the number of decoder layers.

        Raises:
            FoveateError: a step keeps per tile, and the number of tokens of each tile is unknown.
            KeepError: a step would keep more than arrives, or a mean over layers is out of reach.
        """
        if seen.is_still and self.for_pictures.layers != self.layers:
            return self.for_pictures.decoder_steps(seen, arriving, depth)
        cached = self._decoder_steps.get((seen, arriving))
        if cached is not None:
            return cached
        entering = ExpectedTokens.of(seen)
        tokens = entering
        if arriving is not None:
            for method in self.before_decoder:
                entering = entering.after(method)
            tokens = replace(entering, layout=one_row(arriving))
        methods = self.layer_methods(tokens.layout.content, depth)
        reached: list[int] = []
        for layer, method in methods.items():
            if not tokens.layout.content:
                break
            reached.append(layer)
            try:
                tokens = tokens.after(method)
            except KeepError as error:
                raise KeepError(f"{method} at layer {layer}: {error}") from None
        steps = DecoderSteps(entering, methods, tuple(reached), tokens.layout.content)
        self._decoder_steps[seen, arriving] = steps
        return steps

    @property
    def reads_text(self) -> bool:
        """Whether some method at `@input` needs the text of the prompt."""
        return any(isinstance(signal, Text) for method in self.inputs for signal in method.needs)

    @property
    def encoder_signals(self) -> tuple[Signal, ...]:
        """The signals of the encoder that methods need to plan, each once."""
        methods = (*self.features, *self.inputs, *(step.method for step in self.layers))
        needs = (signal for method in methods if not method.keeps_all() for signal in method.needs)
        return tuple(dict.fromkeys(need for need in needs if isinstance(need, EncoderAttention | EncoderKeys | Pixels)))


@dataclass(frozen=True)
class _Placement:
    """The method of a step at one of the step's places."""

    step: Step
    method: Method
    place: Place

    @property
    def rank(self) -> int:
        """Where the place stands in the order in which a model reaches places; decoder layers come last."""
        if isinstance(self.place, int):
            return len(_PLACES) + self.place
        return _PLACES.index(self.place)


def schedule(spec: SpecLike, family: Family) -> Schedule:
    """Sort a spec's steps for a family; one made from a configuration alone (`Family.of_config`) is enough.

    >>> from foveate.costmodel.model_config import load_config
    >>> from foveate.families import Llava
    >>> from foveate.methods import Cluster, FastV
    >>> steps = schedule([Cluster(keep=64), FastV(keep=0.5).at(2)], Llava.of_config(load_config("llava-1.5-7b")))
    >>> str(steps.inputs[0]), steps.layers[0].layer
    ('cluster:64', 2)

    Raises:
        FoveateError: a step acts at a place that is not supported or that this decoder does not have, the order of the
            steps differs from the order in which the model reaches their places, or a method needs a signal that the
            family does not give.
        KeepError: a step would keep more than an earlier one leaves, whatever the image.
        SpecError: the spec is malformed.
    """
    spec = as_spec(spec)
    placements: list[_Placement] = []
    for step in spec.steps:
        step.method.check(step.places, lambda: _weights_of(family))
        for placement in _placements(step):
            _check_place(placement, family)
            _check_order(placement, placements, spec)
            _check_frames(placement, placements, family)
            _check_method(placement, placements, family)
            placements.append(placement)
    _check_counts(placements, spec)

    def at(*places: str) -> list[_Placement]:
        return [placement for placement in placements if placement.place in places]

    pixels, encoder = at("pixels"), at("encoder")
    plan = Schedule(
        spec,
        pixels=pixels[0].method if pixels else None,  # pyright: ignore[reportArgumentType]
        features=tuple(placement.method for placement in at("features")),
        inputs=tuple(placement.method for placement in at("input")),
        layers=tuple(LayerStep(item.place, item.method) for item in placements if isinstance(item.place, int)),
        encoding="+".join(str(placement.step) for placement in (*pixels, *encoder)),
        encoder=encoder[0].method if encoder else None,
    )
    _check_budgets(spec, (*plan.before_decoder, *(step.method for step in plan.layers)))
    return plan


def _placements(step: Step) -> Iterator[_Placement]:
    """Return a step's method at each of its places, with one of the keeps where it has one per layer."""
    method: Method = step.method
    # What a mean over layers keeps at each of them depends on how many tokens arrive.
    methods = method.at_layers(step.places, 0, 0) if method.keep.mean is None else (method,) * len(step.places)
    for place, plain in zip(step.places, methods, strict=True):
        yield _Placement(step, plain, "input" if place == 0 else place)


def _check_place(placement: _Placement, family: Family) -> None:
    """Check that steps can act at a place of this model.

    Raises:
        FoveateError: they cannot.
    """
    step, place = placement.step, placement.place
    if isinstance(place, int):
        _check_memory(step, place, family)
    inside = isinstance(place, int) or step.method.place == "decoder"
    if ("decoder" if inside else place) not in family.places:
        if place == "encoder":
            raise FoveateError(
                f"{step} acts at @encoder, and in {family.title} nothing can: {family.outside_encoder}; use @features "
                f"or @input, or a model of {', '.join(families_at('encoder'))}"
            )
        known = " and ".join("the decoder's layers" if name == "decoder" else f"@{name}" for name in family.places)
        where = "inside the decoder" if inside and not isinstance(place, int) else f"at @{place}"
        raise FoveateError(f"{step} acts {where}, and all that steps can reach in {family.title} is {known}")
    if step.method.place == "decoder" and not isinstance(place, int):
        layers = ",".join(map(str, scaled_layers(step.method.layers, family.decoder_depth)))
        at_input = " (@0 is @input, before the first layer)" if 0 in step.places else ""
        raise FoveateError(
            f"{step} acts inside the decoder{at_input}; say at the input of which layers, for instance "
            f"{step.method}@{layers}"
        )
    if isinstance(place, int):
        _check_layer(step, place, family)


def _check_memory(step: Step, layer: int, family: Family) -> None:
    """Check that no layer from this one on holds a memory, out of which nothing can be taken.

    Raises:
        FoveateError: one does.
    """
    kinds = family.memory_kinds(layer)
    if kinds:
        raise FoveateError(
            f"{step} would drop tokens that layers of {', '.join(kinds)} have taken into their memory already; "
            "use @input on this model"
        )


def _check_layer(step: Step, layer: int, family: Family) -> None:
    """Check that a step can drop tokens at the input of a decoder layer.

    Raises:
        FoveateError: it cannot.
    """
    layers = family.decoder_depth
    if layer >= layers:
        raise FoveateError(
            f"{step} acts at layer {layer}, and this decoder has {layers} layers; name one from 0 to {layers - 1}"
        )
    last = last_layer(family)
    if layer > last:
        reader = family.key_layers().index(last, last + 1)
        raise FoveateError(
            f"{step} acts at layer {layer}, and layer {reader} reads the keys and values of layer {last}, among which "
            f"are those of the tokens that it drops; name a layer from 0 to {last}"
        )


def last_layer(family: Family) -> int:
    """Return the last decoder layer at whose input a step can drop tokens; later ones may read keys of earlier ones."""
    borrowed = [own for reader, own in enumerate(family.key_layers()) if own < reader]
    return min(borrowed, default=family.decoder_depth - 1)


def _check_order(placement: _Placement, earlier: Sequence[_Placement], spec: Spec) -> None:
    """Check that a step acts after those written before it.

    Raises:
        FoveateError: it acts before one of them, or at the same decoder layer.
    """
    reached = earlier[-1].rank if earlier else 0
    if placement.rank < reached:
        raise FoveateError(
            f"{placement.step} comes after a step that acts later; write the steps of {spec} in the order they act"
        )
    if placement.rank == reached and isinstance(placement.place, int):
        raise FoveateError(f"{placement.step} names layer {placement.place} twice; each layer takes one step")


def _check_method(placement: _Placement, earlier: Sequence[_Placement], family: Family) -> None:
    """Check that a method can act at its place and is given the signals that it needs there.

    Raises:
        FoveateError: it cannot, or the family does not give a signal.
    """
    step, method, place = placement.step, placement.method, placement.place
    for layer in _encoder_layers(method):
        family.check_encoder_layer(layer)
    if (place == "pixels") != isinstance(method, PixelMethod):
        raise FoveateError(f"{method.name} cannot act at @{place}; its place is @{method.place}")
    if isinstance(method, PixelMethod):
        resize_mode(family, method)
    elif place == "encoder":
        _check_inside_encoder(step, method, family)
    else:
        for signal in method.needs:
            if isinstance(signal, Pixels) and any(each.place == "encoder" for each in earlier):
                raise FoveateError(
                    f"{method.name} compares the pixels of tokens, and a step inside the encoder leaves tokens that "
                    "have none of their own; leave one of the two out"
                )
            if not _gives(family, signal, place):
                raise FoveateError(f"{method.name} asks for {signal}, which {family.title} cannot give at @{place}")


def _check_frames(placement: _Placement, earlier: Sequence[_Placement], family: Family) -> None:
    """Check that a method that works on the frames of a clip gets a clip, and all of its tokens.

    Raises:
        FoveateError: the family takes no clips, or a step before it leaves tokens out.
    """
    if not placement.method.temporal:
        return
    if not family.clip_places:
        raise FoveateError(
            f"{placement.method.name} works on the frames of a clip, and {family.title} is not given clips yet; use a "
            "method for images, such as cluster"
        )
    before = [each for each in earlier if each.place != "pixels"]
    if before:
        raise FoveateError(
            f"{placement.step} works on whole frames of a clip, and {before[0].step} leaves tokens out before; write "
            f"{placement.method.name} first, at one place"
        )


def check_clip_places(family: Family, places: Iterable[str]) -> None:
    """Check that steps can act on clips at these places, of those in front of the decoder.

    Raises:
        FoveateError: they can't.
    """
    for place in places:
        if place not in family.clip_places:
            here = ", ".join(f"@{name}" for name in family.clip_places if name != "decoder")
            raise FoveateError(
                f"no step can act on clips of {family.title} at @{place}; use {here}, or pass frames as images"
            )


def _encoder_layers(method: Method) -> set[int]:
    """Return the encoder layers that a method reads, and those that its options name though nothing reads them."""
    read = {signal.layer for signal in method.needs if isinstance(signal, EncoderAttention | EncoderKeys)}
    options = {field.name: field.default for field in fields(method) if field.name in _LAYER_OPTIONS}
    return read | {getattr(method, name) for name, usual in options.items() if getattr(method, name) != usual}


def _gives(family: Family, signal: Signal, place: Place) -> bool:
    """Return whether a method at a place gets a signal."""
    if isinstance(signal, Text) and place == "input":
        # The decoder's own embedding makes it, which every family has.
        return True
    return family.gives(signal) or (isinstance(place, int) and family.gives_inside(signal))


def _check_inside_encoder(step: Step, method: Method, family: Family) -> None:
    """Check that a method can act in front of the encoder's layers.

    Raises:
        FoveateError: it cannot.
    """
    if family.encoder_reads < 1:
        raise FoveateError(
            f"{step} acts between the encoder's layers, and this {family.title} reads what comes before the second"
        )
    for signal in encoder_needs(method):
        if not isinstance(signal, EncoderAttention | EncoderKeys):
            raise FoveateError(f"{method.name} asks for {signal}, which no encoder gives at @encoder")


def _check_counts(placements: Sequence[_Placement], spec: Spec) -> None:
    """Check how many steps there are at the places that take one step alone.

    Raises:
        FoveateError: there are too many.
    """
    inside = [placement for placement in placements if isinstance(placement.place, int)]
    if len({id(placement.step) for placement in inside}) > 1 and any(
        placement.method.keep.mean is not None for placement in inside
    ):
        raise FoveateError(f"{spec} has a mean over layers, so that step must be the only one inside the decoder")
    if sum(placement.place == "pixels" for placement in placements) > 1:
        raise FoveateError("a spec has at most one step at @pixels; give the last size at once")
    if sum(placement.place == "encoder" for placement in placements) > 1:
        raise FoveateError("a spec has at most one step at @encoder, which acts in front of every layer there")


def _check_budgets(spec: Spec, methods: Sequence[Method]) -> None:
    """Check that each step finds as many tokens as it keeps, as far as that is known without an image.

    Raises:
        KeepError: a step does not.
    """
    arriving: ExpectedTokens | None = None
    for method in methods:
        tokens, mean = method.keep.tokens, method.keep.mean
        if arriving is None:
            # A step that keeps a number of tokens per image leaves that many of an image of any size. One that works on
            # frames may round it to whole frames. No image has more than MOST; whoever knows the image says so.
            if tokens is not None and tokens <= MOST and method.per == "image" and not method.temporal:
                arriving = ExpectedTokens(one_row(tokens), None, not method.ragged)
            continue
        most = arriving.layout.content
        if mean is not None and mean > most:
            raise KeepError(
                f"{spec}: a mean of {mean} tokens over layers, and no more than {most} arrive; ask for less"
            )
        # How many tokens each tile has is unknown here, and a tile with fewer than its budget keeps all.
        if mean is not None or method.per != "image" or not most:
            continue
        try:
            arriving = arriving.after(method)
        except KeepError as error:
            raise KeepError(f"{spec}: {error}") from None


def _weights_of(family: Family) -> str:
    """Return the fingerprint of the model; "" for a model without weights, or a family without a model."""
    if not family.has_model or any(weight.is_meta for weight in family.core.parameters()):
        return ""
    return model_fingerprint(family.core)
