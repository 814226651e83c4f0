"""`foveate cost`: what a call costs, dense and compressed, without running it."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import DEFAULT_SPECS, JsonOption, RevisionOption, SpecsOption, model_for, model_title
from foveate.commands.output import (
    JSON_HINT,
    Column,
    add_number_columns,
    console,
    finding,
    fitted_table,
    notes,
    print_json,
    silence_transformers,
    spinner,
    table,
)
from foveate.deferred import defer_torch
from foveate.errors import FoveateError, FoveateWarning
from foveate.numbers import MOST

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.costmodel import BreakEven, Cost, Device, Model

CONVENTION = (
    "1 multiply-add = 2 FLOPs. Attention is counted as the full square of queries and keys. Encoder, projector and "
    "head are included. Compressor and peak memory are estimates."
)

_DEFAULT_IMAGE = "336x336"


def cost(
    spec: SpecsOption = DEFAULT_SPECS,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A model folder, a config.json, a model's name on the hub, or a name that --devices lists.",
            show_default="the embedded model",
        ),
    ] = None,
    revision: RevisionOption = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="WxH",
            help="The size of an image in pixels. Repeat for more.",
            show_default=f"{_DEFAULT_IMAGE}; none with --clip",
        ),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(
            "--clip",
            metavar="NxWxH",
            help="How many frames are taken of a clip, and their size in pixels, such as 16x640x360. Repeat for more.",
            show_default="no clip",
        ),
    ] = None,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", metavar="N", max=MOST, help="Text tokens of the prompt.")
    ] = 60,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="N", max=1_000_000, help="Tokens of the answer.")
    ] = 64,
    batch: Annotated[int, typer.Option("--batch", metavar="N", max=MOST, help="Equal prompts in one batch.")] = 1,
    device_name: Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", help="A name that --devices lists, or a file that `foveate calibrate` wrote."
        ),
    ] = "h100",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="bfloat16, float16 or float32.",
            show_default="bfloat16 if the device has it",
        ),
    ] = None,
    list_devices: Annotated[
        bool, typer.Option("--devices", help="List the devices and the models that have names, and exit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict FLOPs, cache, memory and time of a call.

    Nothing is run: only the model's configuration is read, for any device.

    Example: foveate cost --model llava-1.5-7b --spec cluster:64 --device h100
    """
    defer_torch()
    if list_devices:
        _list_devices(as_json)
        return
    from foveate.costmodel.device import device

    place = device(device_name)
    clips = [_clip_size(text) for text in clip or ()]
    model = model_for(model, clips=bool(clips))
    sizes = [image_size(text) for text in image or ([] if clips else [_DEFAULT_IMAGE])]
    from foveate import costmodel
    from foveate.files import kind_of
    from foveate.hub import is_hub_name
    from foveate.spec import as_spec

    specs = [as_spec(text) for text in spec or ()]
    if not costmodel.comes_along(model) and (is_hub_name(str(model)) or kind_of(str(model)) != "missing"):
        silence_transformers()
    with finding(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FoveateWarning)
        shapes = costmodel.read_model(model, revision)
    call: dict[str, Any] = {"text_tokens": text_tokens, "new_tokens": new_tokens, "batch": batch, "dtype": dtype}
    with spinner("Predicting"):
        costs = [
            costmodel.cost(shapes, each, images=sizes, clips=clips, device=place, **call) for each in (None, *specs)
        ]
        # Break-even is a size of one image.
        break_evens = [
            None
            if any(step.method.temporal for step in each.steps)
            else costmodel.break_even(shapes, each, device=place, **call)
            for each in specs
        ]
    for warning in caught:
        notes().print(f"{warning.message}.", soft_wrap=True)
    if as_json:
        print_json(
            {
                "model": model_title(model),
                "images": [list(size) for size in sizes],
                **({"clips": [list(size) for size in clips]} if clips else {}),
                "device": vars(place) | {"rates": dict(place.rates)},
                "convention": CONVENTION,
                "costs": [
                    each.to_dict() | {"break_even": None if even is None else vars(even)}
                    for each, even in zip(costs, [None, *break_evens], strict=True)
                ],
            }
        )
        return
    screen = console()
    screen.print(_cost_table(costs, model_title(model, revision), sizes, clips, screen.width))
    for line, style in _conclusions(costs, break_evens, shapes, place):
        screen.print(line, style=style)
    screen.print(CONVENTION, style="dim")
    screen.print(JSON_HINT, style="dim")


def image_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT.

    >>> image_size("1344x1008")
    (1344, 1008)

    Raises:
        FoveateError: the text is something else.
    """
    found = re.fullmatch(r"\s*([+-]?[0-9]{1,9})\s*[xX]\s*([+-]?[0-9]{1,9})\s*", text)
    if found is None:
        raise FoveateError(f"--image {text!r} is not a size; write WIDTHxHEIGHT in pixels, for instance 1344x1008")
    return int(found[1]), int(found[2])


def _clip_size(text: str) -> tuple[int, int, int]:
    """Read FRAMESxWIDTHxHEIGHT.

    >>> _clip_size("16x640x360")
    (16, 640, 360)

    Raises:
        FoveateError: the text is something else.
    """
    found = re.fullmatch(r"\s*" + r"\s*[xX]\s*".join([r"([+-]?[0-9]{1,9})"] * 3) + r"\s*", text)
    if found is None:
        raise FoveateError(
            f"--clip {text!r} is not the size of a clip; write FRAMESxWIDTHxHEIGHT, for instance 16x640x360"
        )
    return int(found[1]), int(found[2]), int(found[3])


def _list_devices(as_json: bool) -> None:
    from rich.text import Text

    from foveate.costmodel import devices, published

    known = devices()
    if as_json:
        print_json(
            {
                "devices": [vars(device) | {"rates": dict(device.rates)} for device in known.values()],
                "models": list(published()),
            }
        )
        return
    shown = table("device", "what it is")
    add_number_columns(shown, "bfloat16 TFLOP/s", "float32", "GB/s", "memory GB")
    shown.add_column("source", overflow="fold")
    for device in known.values():
        rates = (f"{device.rates[kind] / 1e12:g}" if kind in device.rates else "-" for kind in ("bfloat16", "float32"))
        shown.add_row(
            Text(device.name, "bold"),
            device.title,
            *rates,
            f"{device.bandwidth / 1e9:,.0f}",
            f"{device.memory / 1e9:,.0f}",
            device.source,
        )
    screen = console()
    screen.print(shown)
    screen.print("Models for --model: " + ", ".join(published()))
    screen.print("Add this machine: foveate calibrate", style="dim")


_COLUMNS = (
    Column("spec", text=True),
    Column("visual tokens", "tokens"),
    Column("mean over layers", "layers", optional=True),
    Column("TFLOPs"),
    Column("KV MB"),
    Column("peak GB", "GB"),
    Column("plan MB", "plan", optional=True),
    Column("encode", optional=True),
    Column("compress", optional=True),
    Column("prefill"),
    Column("first token", "first"),
    Column("per token", "next"),
    Column("total ms"),
)


def _cost_table(
    costs: list[Cost], model: str, sizes: list[tuple[int, int]], clips: list[tuple[int, int, int]], width: int
) -> Table:
    dense = costs[0]
    shown = ["image " + ", ".join(f"{width} x {height}" for width, height in sizes)] if sizes else []
    if clips:
        shown.append("clip " + ", ".join(f"{frames} x {width} x {height}" for frames, width, height in clips))
    title = (
        f"{model}, {', '.join(shown)}, {dense.text_tokens} text and {dense.new_tokens} new tokens, "
        f"batch {dense.batch}, {dense.dtype} on {dense.device}"
    )
    rows = []
    for each in costs:
        at_most = "<= " if each.adaptive else ""
        times = (
            each.part("encoder").seconds + each.part("projector").seconds,
            each.part("compressor").seconds,
            each.part("prefill").seconds,
            each.first_token,
            each.per_token,
            each.seconds,
        )
        rows.append(
            (
                each.spec,
                f"{at_most}{each.kept_tokens}",
                f"{at_most}{each.mean_over_layers:.1f}",
                f"{each.flops / 1e12:.3g}",
                f"{each.kv_bytes / 1e6:.1f}",
                f"{each.peak_bytes / 1e9:.2f}",
                f"{each.plan_bytes / 1e6:.1f}",
                *(f"{seconds * 1e3:.2f}" for seconds in times),
            )
        )
    return fitted_table(_COLUMNS, rows, width, title=title)


def _conclusions(
    costs: list[Cost], break_evens: list[BreakEven | None], model: Model, device: Device
) -> list[tuple[str, str]]:
    """Say from which size of an image on each spec saves time, and what does not fit; each line with its style."""
    lines: list[tuple[str, str]] = []
    for each, even in zip(costs[1:], break_evens, strict=True):
        if even is None:
            continue
        if even.tokens is None:
            lines.append(
                (f"{each.spec} saves no time here, up to {even.largest:,} visual tokens in one square image.", "")
            )
        else:
            line = (
                f"{each.spec} saves time from {even.tokens:,} visual tokens on, in one square image; at "
                f"{even.largest:,} tokens it saves {even.saved:.0%} of the call."
            )
            lines.append((line, ""))
    longest = model.decoder.longest
    length = costs[0].visual_tokens + costs[0].text_tokens + costs[0].new_tokens
    if longest is not None and length > longest:
        lines.append((f"The dense prompt and answer take {length:,} positions; the model has {longest:,}.", "yellow"))
    for each in costs:
        if not each.fits:
            needed, there = each.peak_bytes / 1e9, each.memory / 1e9
            lines.append((f"{each.spec} does not fit: it takes {needed:.1f} GB of {there:.0f} GB.", "yellow"))
    if device.measured:
        origin = "times come from measurements."
    else:
        origin = f"times are lower bounds, from peak figures and an assumed {device.launch * 1e6:g} us per kernel."
    lines.append((f"{device.title}: {origin} Source: {device.source}.", "dim"))
    return lines
