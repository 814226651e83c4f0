"""Describe every method and every family: the rows of `foveate methods` and `foveate families`.

Classes say everything. Importing them takes torch, which takes seconds, so what foveate's own classes say is also kept
as data in `listed/`: `python docs/make.py listed` writes it, and a test compares it with the classes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foveate.files import read_json
from foveate.keep import Keep

if TYPE_CHECKING:
    from foveate.families import Family

LISTED: Final = Path(__file__).parent / "listed"
"""The folder of methods.json and families.json."""


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


@dataclass(frozen=True)
class Support:
    """What foveate does with the models of a family, or with one model.

    Attributes:
        name: of the family; "generic" if none describes the model.
        title: of the family, in texts.
        model_type: of the model's configuration.
        checkpoints: released models by their names on the hub.
        places: where steps can act; "decoder" means the inputs of decoder layers.
        layers: of the decoder; 0 where no single model is meant.
        grids: whether the rows and columns of an image are known.
        resize_modes: how an image can be resized before the encoder.
        since: the first version of transformers whose models of this type work, "5.19" for instance.
        refused: the methods that don't work, with their default options, and why.
        note: what a model without a family lacks, and why it has none; "" for one with a family.
    """

    name: str
    title: str
    model_type: str
    checkpoints: tuple[str, ...]
    places: tuple[str, ...]
    layers: int
    grids: bool
    resize_modes: tuple[str, ...]
    since: str
    refused: dict[str, str]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, for JSON."""
        return dataclasses.asdict(self)


def listing() -> tuple[Listing, ...]:
    """Describe every method, sorted by name: foveate's own and those of installed packages.

    >>> [each.name for each in listing() if each.place == "pixels"]
    ['resize']
    """
    if _only_ours("foveate.methods"):
        return tuple(Listing(**_tuples(row)) for row in read_json(LISTED / "methods.json"))
    return described_methods()


def every_family() -> tuple[Support, ...]:
    """Describe every family, sorted by title: foveate's own and those of installed packages.

    >>> [each.title for each in every_family() if "Qwen/Qwen3-VL-8B-Instruct" in each.checkpoints]
    ['Qwen3-VL']
    """
    if _only_ours("foveate.families"):
        return tuple(Support(**_tuples(row)) for row in read_json(LISTED / "families.json"))
    return described_families()


def _only_ours(package: str) -> bool:
    """Return whether a package has foveate's own classes alone, as far as can be told without importing them.

    Installed packages name theirs as entry points of the same name; a program's own need the package itself.
    """
    return package not in sys.modules and not importlib.metadata.entry_points(group=package)


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of JSON with its lists as tuples, as attributes have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def described_methods() -> tuple[Listing, ...]:
    """Describe every method from its class, sorted by name."""
    from foveate.methods import method_names

    return tuple(card(name) for name in method_names())


def described_families() -> tuple[Support, ...]:
    """Describe every family from its class, sorted by title."""
    from foveate.families import families

    return tuple(described_family(family, family.kind()) for family in families())


def described_family(
    family: Family | type[Family],
    model_type: str,
    layers: int = 0,
    refused: dict[str, str] | None = None,
    note: str = "",
) -> Support:
    """Describe a family from its class, or one model of it; the arguments are attributes of `Support`."""
    return Support(
        family.name,
        family.title,
        model_type,
        family.checkpoints,
        family.places,
        layers,
        family.knows_grids,
        family.resize_modes,
        f"{family.since[0]}.{family.since[1]}",
        refused or {},
        note,
    )


def card(name: str) -> Listing:
    """Describe one method, by its name or an alias.

    >>> card("fastervlm").name, card("fastervlm").reads
    ('cls', ("EncoderAttention(layer=-2, heads='mean')",))

    Raises:
        SpecError: no method has the name.
    """
    from foveate.methods import aliases_of, method_class

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
