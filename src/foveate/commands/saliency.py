"""`foveate saliency`: where a model looks while it answers, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    model_title,
    placement_arguments,
)
from foveate.commands.output import (
    JSON_HINT,
    add_number_columns,
    console,
    finding,
    loading,
    print_json,
    silence_transformers,
    spinner,
    table,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from PIL import Image

    from foveate.saliency import Saliency

_HIGHEST = 0.11
"""The share of tokens whose overlap is told: 64 of 576, as in the study of Token Sequence Compression."""


def saliency(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.", show_default=False)],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE", help="Draw the map of each layer over the image.", show_default=False
        ),
    ] = None,
    rows: Annotated[
        str,
        typer.Option(
            "--rows",
            metavar="WHOSE",
            help="Whose attention: last (token of the prompt), or text (all after the image).",
        ),
    ] = "last",
    model: ModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the attention that visual tokens get, in each decoder layer.

    Prints how much of the attention goes to the image, and how much the
    highest 11% of one layer's tokens are those of other layers.

    Example: foveate saliency photo.jpg "what is this ?" --picture maps.png
    """
    with spinner("Reading the image"):
        from foveate.families import family_of
        from foveate.images import open_image
        from foveate.loading import commit_of, load_model, load_processor
        from foveate.prompts import check_question
        from foveate.saliency import attention_maps
        from foveate.view import writable
        from foveate.visual_prompts import visual_prompt

        if rows not in ("last", "text"):
            raise FoveateError(
                f"--rows {rows} is unknown; it is last (token of the prompt) or text (all after the image)"
            )
        question = check_question(question)
        opened = open_image(image)
        if picture is not None:
            writable(picture)
        silence_transformers()
        arguments = placement_arguments(device, dtype, device_map, quantize)
    with finding(model):
        commit = commit_of(model, revision)
        processor = load_processor(model, revision=commit)
    with loading(model):
        network = load_model(model, revision=commit, **arguments)
    with spinner("Looking", working=True):
        family = family_of(network)
        prompt = visual_prompt(family, processor, opened, question)
        if picture is not None and not family.knows_grids:
            raise FoveateError(
                f"no picture can be drawn: where the tokens of {family.title} are in the image is unknown; leave "
                "--picture out"
            )
        from foveate.engine.encode import moved

        (found,) = attention_maps(network, moved(prompt.inputs, family.device), rows)
        figures = _figures(found)
        if picture is not None:
            _draw(processor, opened, found, figures, question, picture)
    if as_json:
        print_json(
            {
                "image": str(image),
                "question": question,
                "model": model_title(model),
                "revision": commit,
                "rows": rows,
                "tokens": found.layout.content,
                "highest": _count(found),
                "layers": figures,
                "picture": None if picture is None else str(picture),
            }
        )
        return
    screen = console()
    shown = table("layer")
    add_number_columns(
        shown, "to the image", "as the layer before", "as the last layer", "as the encoder", "highest in"
    )
    for each in figures:
        cells = [
            "" if each[name] is None else f"{each[name]:.0%}"
            for name in ("share", "with_previous", "with_last", "with_encoder")
        ]
        shown.add_row(str(each["layer"]), *cells, each["where"])
    screen.print(shown)
    tokens = found.layout.content
    screen.print(
        f"To the image: the share of attention. As others: how many of the {_count(found)} tokens with the highest "
        f"attention, of {tokens}, both have; by chance {_count(found) / tokens:.0%}. Highest in: the third of the rows "
        "that gets most, and its share of what goes to the image.",
        style="dim",
    )
    if picture is not None:
        screen.print(f"Picture: {picture}")
    screen.print(JSON_HINT, style="dim")


def _count(found: Saliency) -> int:
    return max(1, round(_HIGHEST * found.layout.content))


def _figures(found: Saliency) -> list[dict[str, Any]]:
    """Return what is told of each layer."""
    from foveate.saliency import overlap, thirds

    count, maps = _count(found), found.decoder
    where = thirds(found)
    names = ("top", "middle", "bottom")
    figures: list[dict[str, Any]] = []
    for layer, one in enumerate(maps):
        highest = max(range(3), key=lambda third: where[layer][third]) if where else None
        figures.append(
            {
                "layer": layer,
                "share": float(one.sum()),
                "with_previous": float(overlap(one, maps[layer - 1], count)) if layer else None,
                "with_last": float(overlap(one, maps[-1], count)) if layer < len(maps) - 1 else None,
                "with_encoder": None if found.encoder is None else float(overlap(one, found.encoder, count)),
                "where": "" if highest is None else f"{names[highest]} {where[layer][highest]:.0%}",
                "thirds": where[layer] if where else None,
            }
        )
    return figures


def _draw(
    processor: Any,
    opened: Image.Image,
    found: Saliency,
    figures: list[dict[str, Any]],
    question: str,
    picture: Path,
) -> None:
    from foveate.asking import seen_part
    from foveate.view import HeatMap, draw_maps, save_picture

    maps = [
        HeatMap(found.layout, one.numpy(), f"layer {each['layer']}", f"{each['share']:.0%} of attention to the image")
        for each, one in zip(figures, found.decoder)
    ]
    if found.encoder is not None:
        maps.insert(0, HeatMap(found.layout, found.encoder.numpy(), "encoder", "attention that tokens get there"))
    save_picture(draw_maps(seen_part(processor, opened), maps, question), picture)
