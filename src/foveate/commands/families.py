"""`foveate families`: the models that foveate knows, and what it does with one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.commands.options import JsonOption, RevisionOption
from foveate.commands.output import Column, console, finding, fitted_table, print_json, silence_transformers, spinner

if TYPE_CHECKING:
    from foveate.listing import Support

_COLUMNS = (
    Column("family", text=True),
    Column("models of type", "type", text=True),
    Column("places", text=True, optional=True),
    Column("released models", text=True),
)


def families(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model's name on the hub, a model folder, or a type of models: tell what works on it.",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the model families, or tell which methods work on one model.

    No weights are needed; of a model that isn't listed, its config.json is read, or downloaded.

    Example: foveate families Qwen/Qwen3-VL-8B-Instruct
    """
    if model is None:
        _list(as_json)
        return
    silence_transformers()
    with spinner("Looking at the model"):
        found = _look_at(model, revision)
    if as_json:
        print_json({"model": model, **found.to_dict()})
        return
    screen = console()
    screen.print(f"{model}: {found.title} (type {found.model_type})", style="bold")
    if found.note:
        screen.print(found.note)
    for name, value in (
        ("transformers", _versions(found)),
        ("places", _places(found)),
        ("rows and columns of images", "known" if found.grids else "not known, so kept tokens can't be drawn"),
        ("ways to resize images", ", ".join(found.resize_modes) or "none"),
        ("methods", _methods(found)),
    ):
        screen.print(f"{name}: {value}")
    for reason in sorted(set(found.refused.values())):
        names = ", ".join(name for name, own in found.refused.items() if own == reason)
        screen.print(f"refused: {names}. {reason}.")


def _list(as_json: bool) -> None:
    from foveate.listing import every_family

    rows = every_family()
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    cells = [(row.title, row.model_type, _places(row), "\n".join(row.checkpoints)) for row in rows]
    screen = console()
    shown = fitted_table(_COLUMNS, cells, screen.width)
    shown.columns[0].style = "bold"
    # Names are searched for and copied.
    shown.columns[-1].no_wrap = True
    screen.print(shown)
    for line in (
        "Other sizes, fine-tunes and versions of these models work as they do: what counts is the type in config.json.",
        "Models of many other types work without a family: at @input, and inside decoders of full attention. Rows and",
        "columns of their images are not known, so nothing is drawn, resized or read from their encoder.",
    ):
        screen.print(line)
    screen.print("What works on one model: foveate families MODEL", style="dim")


def _look_at(model: str, revision: str | None) -> Support:
    from foveate.families import families
    from foveate.loading import commit_of, known_types, model_of_type, skeleton
    from foveate.support import described, example_family, released_as, support

    family = None
    if not revision:
        types = {each.name: each for each in families() if each.name == each.kind()}
        family = released_as(model) or types.get(model)
    # How many layers a released model has, only its configuration tells.
    if family is not None:
        return replace(described(example_family(family)), layers=0)
    if revision is None and model in known_types():
        return replace(support(model_of_type(model)), layers=0)
    with finding(model):
        return support(skeleton(model, revision=commit_of(model, revision)))


def _places(row: Support) -> str:
    """Return the places as specs name them.

    >>> from foveate.listing import every_family
    >>> [_places(each) for each in every_family() if each.name == "llava"]
    ['@pixels, @encoder, @features, @input, @LAYER']
    """
    layer = f"@1 to @{row.layers - 1}" if row.layers else "@LAYER"
    return ", ".join(layer if place == "decoder" else f"@{place}" for place in row.places)


def _versions(row: Support) -> str:
    """Return which versions of transformers work, and whether the installed one is too old."""
    from foveate.errors import UnsupportedFamily
    from foveate.transformers_api import check_since

    major, minor = (int(part) for part in row.since.split("."))
    try:
        check_since(row.title, (major, minor))
    except UnsupportedFamily as error:
        return str(error)
    return f"{row.since} or later"


def _methods(row: Support) -> str:
    from foveate.listing import listing

    count = len(listing())
    return f"all {count}" if not row.refused else f"{count - len(row.refused)} of {count}"
