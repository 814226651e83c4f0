"""Describe every method from its class: the rows of `foveate methods` and the pages about methods."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from dataclasses import dataclass
from typing import Any

from foveate.keep import Keep
from foveate.methods import aliases_of, method_class, method_names


@dataclass(frozen=True)
class Listing:
    """One method, described: its card.

    Attributes:
        name: what specs call it.
        aliases: what else specs may call it.
        what: one sentence.
        headline: one line with its authors, if it has any.
        card: all that its docstring says, without the example; Markdown.
        example: code that runs, as in a session.
        spec: how it is written with everything at its default.
        place: default place; "decoder" means the input of decoder layers, which a spec names.
        layers: for those, the layers of 32 where its authors have it act.
        positions: "keep" or "pack", its default.
        reads: what it looks at besides the features, as it is by default.
        query_aware: whether it reads the question.
        adaptive: whether the count may depend on the content.
        trained: whether it has weights of its own.
        temporal: whether it works on the frames of a clip, and on no image.
        paper: where it comes from; "" for a baseline.
        options: per option its default, and the choices if they are few.
    """

    name: str
    aliases: tuple[str, ...]
    what: str
    headline: str
    card: str
    example: str
    spec: str
    place: str
    layers: tuple[int, ...]
    positions: str
    reads: tuple[str, ...]
    query_aware: bool
    adaptive: bool
    trained: bool
    temporal: bool
    paper: str
    options: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, for JSON."""
        return dataclasses.asdict(self)


def listing() -> tuple[Listing, ...]:
    """Describe every method, sorted by name.

    >>> [each.name for each in listing() if each.place == "pixels"]
    ['resize']
    """
    return tuple(card(name) for name in method_names())


def card(name: str) -> Listing:
    """Describe one method, by its name or an alias.

    >>> card("fastervlm").name, card("fastervlm").reads
    ('cls', ("EncoderAttention(layer=-2, heads='mean')",))

    Raises:
        SpecError: no method has the name.
    """
    method = method_class(name)
    default = method()
    hints = typing.get_type_hints(method)
    options: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(method):
        value = str(field.default) if isinstance(field.default, Keep) else field.default
        options[field.name] = {"default": value}
        if typing.get_origin(hints[field.name]) is typing.Literal:
            options[field.name]["choices"] = list(typing.get_args(hints[field.name]))
    prose, mark, example = (inspect.getdoc(method) or "").partition(">>> ")
    # The first sentence: a full stop inside a number or a name isn't followed by a space and a capital.
    paragraph = " ".join(prose.split("\n\n")[0].split())
    return Listing(
        name=str(method.name),
        aliases=aliases_of(method.name),
        what=re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0],
        headline=(inspect.getdoc(inspect.getmodule(method)) or "").partition("\n")[0],
        card=prose.strip(),
        example=(mark + example).strip(),
        spec=str(default),
        place=str(method.place),
        layers=tuple(method.layers),
        positions=str(options["positions"]["default"]),
        reads=tuple(str(signal) for signal in default.needs),
        query_aware=bool(method.query_aware),
        adaptive=bool(method.adaptive),
        trained=bool(method.trained),
        temporal=bool(method.temporal),
        paper=str(method.paper),
        options=options,
    )
