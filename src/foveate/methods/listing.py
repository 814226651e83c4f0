"""What every method says about itself: the rows of `foveate methods`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from dataclasses import dataclass
from typing import Any

from foveate.spec import method_class, method_names
from foveate.tokens import Keep


@dataclass(frozen=True)
class Listing:
    """One method, described.

    Attributes:
        name: what specs call it.
        what: one sentence.
        place: where it acts by nature.
        positions: "keep" or "pack", its default.
        query_aware: whether it reads the question.
        adaptive: whether the count depends on the content.
        trained: whether it has weights of its own.
        paper: where it comes from; "" for a baseline.
        options: per option its default, and the choices if they are few.
    """

    name: str
    what: str
    place: str
    positions: str
    query_aware: bool
    adaptive: bool
    trained: bool
    paper: str
    options: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return dataclasses.asdict(self)


def listing() -> tuple[Listing, ...]:
    """Every method, by name.

    >>> [each.name for each in listing() if each.place == "pixels"]
    ['resize']
    """
    return tuple(_describe(name) for name in method_names())


def _describe(name: str) -> Listing:
    method = method_class(name)
    hints = typing.get_type_hints(method)
    options: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(method):
        default = str(field.default) if isinstance(field.default, Keep) else field.default
        options[field.name] = {"default": default}
        if typing.get_origin(hints[field.name]) is typing.Literal:
            options[field.name]["choices"] = list(typing.get_args(hints[field.name]))
    # The first sentence: a full stop inside a number or a name isn't followed by a space and a capital.
    paragraph = " ".join((inspect.getdoc(method) or "").split("\n\n")[0].split())
    return Listing(
        name=name,
        what=re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0],
        place=str(method.place),
        positions=str(options["positions"]["default"]),
        query_aware=bool(method.query_aware),
        adaptive=bool(method.adaptive),
        trained=bool(method.trained),
        paper=str(method.paper),
        options=options,
    )
