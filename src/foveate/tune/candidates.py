"""Propose what to search: methods x places x budgets, and leave out what can't be done or can't save time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from foveate.bench.configurations import CLIP_BASELINES, IMAGE_BASELINES, configurations, name_of, read_budgets
from foveate.errors import FoveateError, KeepError, unknown
from foveate.listing import Listing, listing
from foveate.methods import method_class
from foveate.numbers import read_share
from foveate.schedule import scaled_layers
from foveate.spec import Spec, SpecLike, parse
from foveate.tokens import PLACES
from foveate.tune.calls import Calls

__all__ = ["BUDGETS", "CANT", "OWN", "PLACES_TRIED", "SLOW", "SMALL", "LeftOut", "possible", "proposed"]

BUDGETS: Final = "0.5,0.25,0.1"
"""The default budgets: shares, which fit images of any size."""

OWN: Final = "own"
"""The name of a method's default place; inside the decoder, the layers of its authors."""

PLACES_TRIED: Final = "own,1/2"
"""The default places: a method's own, and for those that act inside the decoder half its depth as well."""

CANT: Final = "can't act on this model"
SMALL: Final = "keep more tokens than an image has"
SLOW: Final = "are predicted to take as long as dense, or longer"


@dataclass(frozen=True)
class LeftOut:
    """A candidate that isn't searched.

    Attributes:
        name: the spec.
        kind: why, in a few words that many share.
        why: all that there is to say.
    """

    name: str
    kind: str
    why: str


def proposed(
    depth: int,
    methods: str | None = None,
    places: str | None = None,
    keep: str | None = None,
    specs: Iterable[SpecLike] = (),
    clips: bool = False,
) -> tuple[tuple[Spec, ...], tuple[LeftOut, ...]]:
    """Propose candidates: each method at each place with each budget, and further specs.

    Args:
        depth: the number of decoder layers.
        methods: names, with commas between them; None is every method without weights of its own, for clips those for
            clips as well; "none" is no method.
        places: where each is tried: "own", the name of a place, a layer ("4"), or a share of the depth ("1/2"). None is
            its own, and half the depth for those that act inside the decoder.
        keep: budgets, as `foveate bench` reads them.
        specs: further candidates; one without a budget is tried with every one of `keep`.
        clips: whether the questions are about clips.

    Returns:
        The candidates, each once, and those that can't even be written.

    Raises:
        FoveateError: a name, a place or a budget can't be read, or there is no candidate.

    >>> [str(spec) for spec in proposed(12, "cluster,fastv", keep="64,0.25")[0]]
    ['cluster:64', 'cluster:0.25', 'fastv:64@1', 'fastv:0.25@1', 'fastv:64@6', 'fastv:0.25@6']
    >>> [str(spec) for spec in proposed(12, "pool", "input,4", "0.5", ["cls:9"])[0]]
    ['pool:0.5', 'pool:0.5@4', 'cls:9']
    """
    budgets = read_budgets(BUDGETS if keep is None else keep)
    where = PLACES_TRIED if places is None else places
    found: dict[str, Spec] = {}
    left_out: list[LeftOut] = []
    for method in _methods(methods, clips):
        for place in _places(method, where, depth, everywhere=places is not None):
            for budget in budgets if method_class(method.name).takes_keep else ("",):
                text = ":".join(part for part in (method.name, str(budget)) if part) + place
                try:
                    spec = parse(text)
                except FoveateError as error:
                    left_out.append(LeftOut(text, CANT, str(error).replace("\n", " ")))
                    continue
                found.setdefault(name_of(spec), spec)
    given = list(specs)
    for spec in configurations(given, BUDGETS if keep is None else keep)[1:] if given else ():
        found.setdefault(name_of(spec), spec)
    if not found:
        raise FoveateError("nothing is left to search: name methods, or candidates by --spec")
    return tuple(found.values()), tuple(left_out)


def _methods(text: str | None, clips: bool) -> list[Listing]:
    every = {each.name: each for each in listing()}
    if text is None:
        return [each for each in every.values() if not each.trained and (clips or not _for_clips(each))]
    if text.strip() == "none":
        return []
    names = {alias: each.name for each in every.values() for alias in (each.name, *each.aliases)}
    chosen: dict[str, Listing] = {}
    for part in text.split(","):
        name = part.strip()
        if name not in names:
            raise FoveateError(f"--methods: {unknown('method is called', name, sorted(names))}")
        chosen.setdefault(names[name], every[names[name]])
    return list(chosen.values())


def _for_clips(method: Listing) -> bool:
    """Return whether a method is for clips alone, or is to an image what another baseline is."""
    return method.temporal or (method.name in CLIP_BASELINES and method.name not in IMAGE_BASELINES)


def _places(method: Listing, text: str, depth: int, everywhere: bool) -> list[str]:
    """Return the places of a method as a spec ends with them; layers are for every method if they were asked for."""
    inside = method.place == "decoder"
    found: dict[str, None] = {}
    for part in text.split(","):
        place = part.strip()
        if place == OWN:
            layers = scaled_layers(method.layers, depth) or [1]
            found.setdefault("@" + ",".join(map(str, layers)) if inside else "")
        elif place in PLACES:
            if not inside:
                found.setdefault("" if place == method.place else f"@{place}")
        elif inside or everywhere:
            found.setdefault(f"@{_layer(place, depth)}")
    return list(found)


def _layer(text: str, depth: int) -> int:
    try:
        if text.isascii() and text.isdigit() and int(text):
            return int(text)
        share = read_share(text)
    except ValueError:
        share = Fraction(1)
    if share == 1:
        raise FoveateError(
            f"--places {text!r} names no place; there are own, {', '.join(PLACES)}, decoder layers such as 4, and "
            "shares of the decoder's depth such as 1/2"
        )
    return max(1, round(share * depth))


def possible(
    specs: Iterable[Spec], calls: Calls, always: Collection[str] = ()
) -> tuple[tuple[Spec, ...], tuple[LeftOut, ...]]:
    """Leave out what a model can't do with these images, and what is predicted to save no time.

    Args:
        specs: the candidates.
        calls: what is asked of the model.
        always: names of those that stay even if they are predicted to save nothing: someone asked for them.

    Returns:
        The others, in their order, and what was left out.
    """
    kept: list[Spec] = []
    left_out: list[LeftOut] = []
    dense = calls.seconds(None)
    for spec in specs:
        name = name_of(spec)
        try:
            seconds = calls.seconds(spec)
        except FoveateError as error:
            kind = SMALL if isinstance(error, KeepError) else CANT
            left_out.append(LeftOut(name, kind, str(error).replace("\n", " ")))
            continue
        if seconds >= dense and name not in always:
            ratio = f"{seconds / dense:.2f} times the time of dense on {calls.device.title}"
            left_out.append(LeftOut(name, SLOW, ratio))
        else:
            kept.append(spec)
    return tuple(kept), tuple(left_out)
