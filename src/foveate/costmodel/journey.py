"""How many visual tokens of a picture there are along the model: a spec's steps, counted without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.costmodel.pictures import Picture
from foveate.costmodel.vision import Vision
from foveate.errors import FoveateError, KeepError
from foveate.methods import Method, PixelMethod
from foveate.schedule import scaled_layers
from foveate.schedule.expected import ExpectedTokens, kept_slots
from foveate.spec import Spec, Step, parse
from foveate.tokens import Layout

_STAGES = {"pixels": 0, "encoder": 1, "features": 2, "input": 3}


@dataclass(frozen=True)
class Visit:
    """One step at one place.

    Attributes:
        method: what acts.
        place: "encoder" for each of its layers, "features", "input", or a decoder layer above 0.
        arriving: visual tokens of the picture that it sees.
        leaving: visual tokens that it leaves; the most, if the content decides.

    Structural tokens are in neither.
    """

    method: Method
    place: str | int
    arriving: int
    leaving: int


@dataclass(frozen=True)
class Journey:
    """One picture's way through the model.

    Attributes:
        dense: visual tokens without any step.
        seen: what the encoder sees.
        leaves: visual tokens that leave the encoder, padding of tiles included, structural tokens not.
        visits: the steps inside the encoder and behind it, in order.
        layers: visual tokens in each decoder layer.
        adaptive: whether the content decides somewhere; these counts are the most then.
        inside: patches in each encoder layer, where a step inside it makes them fewer; else empty.
    """

    dense: int
    seen: Picture
    leaves: int
    visits: tuple[Visit, ...]
    layers: tuple[int, ...]
    adaptive: bool
    inside: tuple[int, ...] = ()


def journey(spec: str | Spec | None, picture: Picture, vision: Vision, depth: int, modes: tuple[str, ...]) -> Journey:
    """Follow one picture through a spec.

    Args:
        spec: what is applied; None is dense.
        picture: what becomes of the picture without any step.
        vision: the vision side.
        depth: decoder layers.
        modes: the family's ways to shrink a picture, best first.

    Raises:
        FoveateError: a step can't act where it stands.
        KeepError: a step would keep more than arrives.
        SpecError: the spec is malformed.
    """
    parsed = parse(spec) if isinstance(spec, str) else spec
    seen = picture
    remaining = ExpectedTokens.of(picture.layout)
    visits: list[Visit] = []
    layers = [picture.layout.total] * depth
    reached = -1
    adaptive = False
    inside: tuple[int, ...] = ()
    leaves: int | None = None
    for step in parsed.steps if parsed is not None else ():
        try:
            places = _places(step, depth)
            methods = step.method.at_layers(places, remaining.layout.content, depth)
            for place, method in zip(places, methods, strict=True):
                stage = _STAGES[place] if isinstance(place, str) else len(_STAGES) + place
                if stage < reached or (stage == reached and place not in ("features", "input")):
                    raise FoveateError(f"{step} stands behind a later place; write the steps of {parsed} as they act")
                reached = stage
                if (place == "pixels") != isinstance(method, PixelMethod):
                    raise FoveateError(f"{method.name} cannot act at @{place}; its place is @{method.place}")
                start = place if isinstance(place, int) else 0
                if isinstance(method, PixelMethod):
                    # A picture that is enlarged again saves no token.
                    if _mode(method, modes) != "enlarge":
                        seen = vision.sizing.shrunk(picture, *method.shrink(picture.layout))
                        remaining = ExpectedTokens.of(seen.layout)
                    layers = [seen.layout.total] * depth
                    continue
                if place == "encoder":
                    inside, more = _inside(step, method, remaining.layout.content, vision)
                    visits += more
                    remaining = remaining.after(method)
                    leaves = remaining.layout.content
                    layers = [leaves] * depth
                    continue
                arriving = remaining.layout.content
                remaining = remaining.after(method)
                visits.append(Visit(method, place, arriving, remaining.layout.content))
                adaptive = adaptive or method.ragged
                layers[start:] = [_with_structural(visits, seen.layout)] * (depth - start)
        except KeepError as error:
            raise KeepError(f"{parsed}: {error}") from None
    if leaves is None:
        leaves = vision.tokens(seen)
    return Journey(picture.layout.total, seen, leaves, tuple(visits), tuple(layers), adaptive, inside)


def _inside(step: Step, method: Method, arriving: int, vision: Vision) -> tuple[tuple[int, ...], list[Visit]]:
    """Patches in each encoder layer under a step there, and its visits.

    Raises:
        FoveateError: it can't act there.
        KeepError: more would remain than there are, or it can't be had in so many layers.
    """
    if vision.reads is None or vision.reads < 1:
        raise FoveateError(f"{step} acts inside the encoder, and nothing can in this model's; use @features or @input")
    counts = [arriving]
    visits: list[Visit] = []
    for here in method.in_encoder(arriving, vision.reads):
        counts.append(here.keep.count(counts[-1]))
        if counts[-1] < counts[-2]:
            visits.append(Visit(here, "encoder", counts[-2], counts[-1]))
    # Layers behind the one that is read run all the same.
    return (*counts, *counts[-1:] * (vision.depth - len(counts))), visits


def _with_structural(visits: Sequence[Visit], layout: Layout) -> int:
    """Tokens behind the last visit, with the structural tokens that are kept with them; the most, if it isn't known."""
    content = visits[-1].leaving
    if layout.structural and all(visit.method.fixed for visit in visits):
        return content + int(layout.held(kept_slots([visit.method for visit in visits], layout)).sum())
    return content + layout.held_between(content)[1]


def _mode(method: PixelMethod, modes: tuple[str, ...]) -> str:
    mode = modes[0] if method.mode == "auto" and modes else method.mode
    if mode not in modes:
        raise FoveateError(f"this model cannot resize {mode!r}; use {' or '.join(modes) or 'another method'}")
    return mode


def _places(step: Step, depth: int) -> tuple[str | int, ...]:
    """The places of a step.

    Raises:
        FoveateError: one of them is no place of this decoder.
    """
    for place in step.places:
        if isinstance(place, int) and place >= depth:
            raise FoveateError(
                f"{step} acts at layer {place}, and this decoder has {depth} layers; name one from 0 to {depth - 1}"
            )
        if place == "decoder":
            layers = ",".join(map(str, scaled_layers(step.method.layers, depth)))
            raise FoveateError(
                f"{step} acts inside the decoder; say at the input of which layers, for instance {step}@{layers}"
            )
    return tuple("input" if place == 0 else place for place in step.places)
