"""The controls of a spec: what sliders and lists show of a written spec, and the spec that they write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.keep import Keep
from foveate.listing import Listing, listing
from foveate.options import written_value
from foveate.quotes import quote
from foveate.schedule import last_layer, scaled_layers
from foveate.spec import Spec, Step, as_spec

__all__ = ["Controls", "OptionControl", "controls_of", "written_by"]

_DECODER: Final = "decoder"
_HIDDEN: Final = ("keep",)
"""Options that have a control of their own."""


@dataclass(frozen=True)
class OptionControl:
    """One option of a method.

    Attributes:
        name: of the option.
        value: as a spec writes it.
        default: as a spec would write it.
        choices: what it may be, if that is a short list.
    """

    name: str
    value: str
    default: str
    choices: tuple[str, ...] = ()

    @property
    def unchanged(self) -> bool:
        """Whether it is at its default."""
        return self.value == self.default


@dataclass(frozen=True)
class Controls:
    """What the controls of one spec show: its last step; earlier steps stay as they are written.

    Attributes:
        before: the earlier steps, as written; "" for none.
        method: its name; "" for no spec.
        what: what the method does, in one sentence.
        methods: the names to choose from.
        place: where it acts; "decoder" for layers.
        places: the places to choose from.
        layers: decoder layers, as written, such as "8,16"; "" elsewhere.
        last_layer: the last layer that a step may name.
        tokens: how many it keeps of an image, as far as a slider can show that.
        most: tokens of an image.
        takes_keep: whether the method takes a budget.
        adaptive: whether it can choose the budget itself.
        auto: whether it does.
        options: all others.
    """

    before: str
    method: str
    what: str
    methods: tuple[str, ...]
    place: str = ""
    places: tuple[str, ...] = ()
    layers: str = ""
    last_layer: int = 0
    tokens: int = 1
    most: int = 1
    takes_keep: bool = True
    adaptive: bool = False
    auto: bool = False
    options: tuple[OptionControl, ...] = ()


def controls_of(text: str, family: Family, tokens: int, *, clip: bool = False) -> Controls:
    """Return what the controls of a written spec show.

    Args:
        text: the spec; "" for none.
        family: of the model.
        tokens: of an image, or of a clip, without any step.
        clip: whether methods for clips can be chosen.

    Raises:
        SpecError: the spec can't be read.

    >>> from foveate.families import family_class
    >>> from foveate.costmodel.model_config import load_config
    >>> family = family_class(load_config("llava-1.5-7b")).of_config(load_config("llava-1.5-7b"))
    >>> found = controls_of("resize:0.25+fastv:0.5:rows=text@8", family, 576)
    >>> found.before, found.method, found.place, found.layers, found.tokens
    ('resize:0.25', 'fastv', 'decoder', '8', 288)
    >>> [(option.name, option.value) for option in found.options if option.value != option.default]
    [('rows', 'text')]
    """
    cards = {card.name: card for card in listing()}
    names = tuple(name for name, card in cards.items() if clip or not card.temporal)
    if not text.strip():
        return Controls("", "", "", names, most=tokens)
    *earlier, last = as_spec(text).steps
    card = cards[last.method.name]
    inside = isinstance(last.places[0], int)
    keep = last.method.keep
    return Controls(
        before=str(Spec(tuple(earlier))) if earlier else "",
        method=card.name,
        what=card.what,
        methods=names if card.name in names else (*names, card.name),
        place=_DECODER if inside else str(last.places[0]),
        places=_places(card, family),
        layers=",".join(map(str, last.places)) if inside else "",
        last_layer=last_layer(family),
        tokens=_tokens(keep, tokens),
        most=tokens,
        takes_keep=last.method.takes_keep,
        adaptive=card.adaptive,
        auto=keep.auto,
        options=tuple(_option(name, of, last) for name, of in card.options.items() if name not in _HIDDEN),
    )


def written_by(fields: Mapping[str, Any], family: Family, old: str = "") -> str:
    """Return the spec that controls write, in its canonical form; as it is put together where it can't be read.

    Args:
        fields: by name: "before", "method", "place", "layers", "tokens", "auto", and "options", a mapping.
        family: of the model, for the layers where a method acts that isn't given any.
        old: the spec before; where another method is chosen, its budget stays and its options don't.

    >>> from foveate.families import Generic
    >>> written_by({"method": "cluster", "place": "input", "tokens": 16, "options": {"seed": "3"}}, Generic)
    'cluster:16:seed=3'
    """
    name = str(fields.get("method") or "")
    if not name:
        return ""
    card = next((each for each in listing() if each.name == name), None)
    step = _last_step(old)
    same = card is None or (step is not None and step.method.name == card.name) or not old
    before = str(fields.get("before") or "")
    place, layers = str(fields.get("place") or ""), str(fields.get("layers") or "").strip()
    options = dict(fields.get("options") or {}) if same else {}
    if card is not None and not same:
        place, layers = card.place, ""
    if place == _DECODER and not layers:
        asked = card.layers if card is not None and card.place == _DECODER else (8,)
        layers = ",".join(map(str, scaled_layers(asked, family.decoder_depth)))
    text = name
    takes_keep = card is None or _takes_keep(card)
    keep = "auto" if fields.get("auto") and (card is None or card.adaptive) else _kept(fields, step if same else None)
    if takes_keep:
        text += f":{keep}"
    for option, value in options.items():
        text += f":{option}={quote(str(value).strip())}"
    default = card is not None and place == card.place
    where = layers if place == _DECODER else "" if default else place
    text += f"@{where}" if where else ""
    text = f"{before}+{text}" if before else text
    try:
        return str(as_spec(text))
    except FoveateError:
        return text


def _kept(fields: Mapping[str, Any], step: Step | None) -> str:
    """Return the keep of a step: what was written before if the slider stands where that put it."""
    tokens = int(fields.get("tokens") or 1)
    most = int(fields.get("most") or 0)
    if step is not None and most and not step.method.keep.auto and _tokens(step.method.keep, most) == tokens:
        return str(step.method.keep)
    return str(tokens)


def _last_step(text: str) -> Step | None:
    try:
        return as_spec(text).steps[-1] if text.strip() else None
    except FoveateError:
        return None


def _takes_keep(card: Listing) -> bool:
    from foveate.methods import method_class

    return method_class(card.name).takes_keep


def _places(card: Listing, family: Family) -> tuple[str, ...]:
    """Return where a method may act: a method of the pixels only there, one that reads the decoder only inside it."""
    if card.place == "pixels":
        return ("pixels",)
    there = [place for place in family.places if place != "pixels"]
    if card.place == _DECODER and any(each.startswith("Decoder") for each in card.reads):
        there = [_DECODER]
    return tuple(dict.fromkeys([*there, card.place]))


def _tokens(keep: Keep, tokens: int) -> int:
    """Return how many of an image's tokens a keep is, for a slider: of one per layer the last, of a mean the mean."""
    if keep.layers:
        keep = keep.layers[-1]
    if keep.auto or not tokens:
        return max(1, tokens // 4)
    if keep.mean is not None:
        return min(keep.mean, tokens)
    return min(keep.tokens, tokens) if keep.tokens is not None else keep.count(tokens)


def _option(name: str, described: Mapping[str, Any], step: Step) -> OptionControl:
    choices: Sequence[Any] = described.get("choices", ())
    if isinstance(described["default"], bool):
        choices = (False, True)
    return OptionControl(
        name,
        re.sub(r'^"(.*)"$', r"\1", written_value(getattr(step.method, name))),
        written_value(described["default"]),
        tuple(map(written_value, choices)),
    )
