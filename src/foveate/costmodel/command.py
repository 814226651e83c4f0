"""`foveate cost` and `foveate calibrate`: what a call costs, told and measured."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.costmodel.device import Device, device, devices, read_devices, save, user_file
from foveate.errors import FoveateError, FoveateWarning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from foveate.costmodel.estimate import BreakEven, Cost, Model

_WIDE = 132
CONVENTION = (
    "1 multiply-add = 2 FLOPs. Attention counts as the whole square of queries and keys. Encoder, projector and head "
    "are in. Compressor and peak memory are estimates."
)


def cost(
    spec: Annotated[
        list[str] | None, typer.Option("--spec", help="Count under this too; may be given several times.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model directory, a config.json or a published name. [default: the embedded model]"),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="WIDTHxHEIGHT in pixels; once per image. [default: 336x336]")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Tokens of a prompt beside the visual ones.")] = 60,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 64,
    batch: Annotated[int, typer.Option(help="Equal prompts at once.")] = 1,
    device_name: Annotated[
        str, typer.Option("--device", help="A device of --devices, or a file that calibrate wrote.")
    ] = "h100",
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. [default: bfloat16 where the device has it]")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--devices", help="List devices and published models.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Tell what a call costs, dense and compressed: FLOPs, cache, memory, time. Runs nothing and needs no weights."""
    if list_devices:
        _list(as_json)
        return
    place = device(device_name)
    sizes = [_size(text) for text in image or ["336x336"]]
    from foveate.costmodel.estimate import break_even, read_model
    from foveate.costmodel.estimate import cost as cost_of
    from foveate.spec import parse

    specs = [parse(text) for text in spec or ["cluster:64"]]
    _quiet()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FoveateWarning)
        shapes = read_model(model)
    for each in said:
        typer.echo(f"{each.message}.", err=True)
    rest: dict[str, Any] = {"text_tokens": text_tokens, "new_tokens": new_tokens, "batch": batch, "dtype": dtype}
    rows = [cost_of(shapes, each, images=sizes, device=place, **rest) for each in (None, *specs)]
    evens = [break_even(shapes, each, device=place, **rest) for each in specs]
    if as_json:
        told = [
            row.to_dict() | {"break_even": None if even is None else vars(even)}
            for row, even in zip(rows, [None, *evens], strict=True)
        ]
        _print_json(
            {
                "model": model or "the embedded reference model",
                "images": [list(size) for size in sizes],
                "device": vars(place) | {"rates": dict(place.rates)},
                "convention": CONVENTION,
                "costs": told,
            }
        )
        return
    console = _console()
    console.print(_table_of(rows, model, sizes))
    for line in _notes(rows, evens, shapes, place):
        console.print(line, highlight=False)
    console.print(CONVENTION, style="dim", highlight=False)
    console.print("Everything as JSON: the same command with --json", style="dim", highlight=False)


def calibrate(
    name: Annotated[str, typer.Option(help="What to call this device.")] = "this-machine",
    place: Annotated[str, typer.Option("--device", help="What to measure: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="The data type to measure in. [default: float32 on a CPU, else bfloat16]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: as many as torch takes]")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="About how long to measure. [default: 20, with --check 40]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write. [default: the user's configuration folder]")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Measure prefills too, and predict them.")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw --check as a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Measure this machine for `foveate cost`: products, attention, memory and launches."""
    if not re.fullmatch(r"[\w.-]{1,60}", name):
        raise FoveateError(f"{name!r} is no name for a device; take letters, digits, dots, dashes")
    if threads is not None and threads < 1:
        raise FoveateError(f"--threads {threads} does nothing; give at least 1")
    if seconds is not None and not 0 <= seconds <= 3600:
        raise FoveateError(f"--seconds {seconds:g} is no time to measure; give up to 3600")
    path = out or user_file()
    if path.is_dir():
        raise FoveateError(f"{path} is a directory; name a file to write")
    if path.is_file():
        # Before a minute of measuring: what stands there must be a device file, to which this device is added.
        read_devices(path)
    import torch
    from rich.console import Console

    from foveate.costmodel.calibrate import calibrate as measured
    from foveate.costmodel.check import check as checked
    from foveate.costmodel.check import draw

    _quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    points = []
    with Console(stderr=True).status("Measuring ..."):
        if check or picture is not None:
            found, points = checked(name, place, dtype, 40.0 if seconds is None else seconds)
        else:
            found = measured(name, place, dtype, 20.0 if seconds is None else seconds)
    save(found, path)
    if picture is not None:
        draw(found, points, picture)
    if as_json:
        _print_json(
            {
                "device": vars(found) | {"rates": dict(found.rates)},
                "file": str(path),
                "check": [point.to_dict() for point in points],
                "picture": None if picture is None else str(picture),
            }
        )
        return
    console = _console()
    ((kind, rate),) = found.rates.items()
    console.print(f"[bold]{found.name}[/]: {found.title}", highlight=False)
    console.print(
        f"  {rate / 1e9:,.1f} GFLOP/s in {kind}, {found.bandwidth / 1e9:,.1f} GB/s of weights, "
        f"{found.launch * 1e6:.1f} us per kernel",
        highlight=False,
    )
    if points:
        table = _table("decoder")
        for column in ("tokens", "predicted ms", "measured ms", "predicted / measured"):
            table.add_column(column, justify="right")
        for point in points:
            table.add_row(
                point.decoder,
                f"{point.tokens}",
                f"{point.predicted * 1e3:.2f}",
                f"{point.measured * 1e3:.2f}",
                f"{point.ratio:.2f}",
            )
        console.print(table)
    console.print(f"Written: {path}", highlight=False, soft_wrap=True)
    use = found.name if out is None else str(path)
    console.print(f"Use it: foveate cost --device {use}", style="dim", highlight=False, soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*([+-]?[0-9]{1,9})\s*[xX]\s*([+-]?[0-9]{1,9})\s*", text)
    if found is None:
        raise FoveateError(f"{text!r} is no size of an image; write WIDTHxHEIGHT in pixels, for instance 1344x1008")
    return int(found[1]), int(found[2])


def _list(as_json: bool) -> None:
    from foveate.costmodel.model_config import published

    known = devices()
    if as_json:
        _print_json(
            {
                "devices": [vars(each) | {"rates": dict(each.rates)} for each in known.values()],
                "models": list(published()),
            }
        )
        return
    table = _table("device", "what it is")
    for column in ("bfloat16 TFLOP/s", "float32", "GB/s", "memory GB"):
        table.add_column(column, justify="right")
    table.add_column("source", overflow="fold")
    for each in known.values():
        rates = (f"{each.rates[kind] / 1e12:g}" if kind in each.rates else "-" for kind in ("bfloat16", "float32"))
        table.add_row(
            f"[bold]{each.name}[/]",
            each.title,
            *rates,
            f"{each.bandwidth / 1e9:,.0f}",
            f"{each.memory / 1e9:,.0f}",
            each.source,
        )
    console = _console()
    console.print(table)
    console.print("Models by name: " + ", ".join(published()), highlight=False)


def _table_of(rows: list[Cost], model: str | None, sizes: list[tuple[int, int]]) -> Table:
    pictures = ", ".join(f"{width} x {height}" for width, height in sizes)
    first = rows[0]
    title = (
        f"{model or 'the embedded reference model'}, image {pictures}, {first.text_tokens} text and "
        f"{first.new_tokens} new tokens, batch {first.batch}, {first.dtype} on {first.device}"
    )
    table = _table(title=title)
    # A spec that is cut short says nothing.
    table.add_column("spec", no_wrap=True, min_width=max(len(row.spec) for row in rows))
    for column in (
        "visual tokens",
        "mean over layers",
        "TFLOPs",
        "KV MB",
        "peak GB",
        "encoder",
        "compressor",
        "prefill",
        "first token",
        "per token",
        "total ms",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        most = "<= " if row.adaptive else ""
        encoder = row.part("encoder").seconds + row.part("projector").seconds
        table.add_row(
            row.spec,
            f"{most}{row.kept_tokens}",
            f"{most}{row.mean_over_layers:.1f}",
            f"{row.flops / 1e12:.3g}",
            f"{row.kv_bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e9:.2f}",
            *(
                f"{seconds * 1e3:.2f}"
                for seconds in (
                    encoder,
                    row.part("compressor").seconds,
                    row.part("prefill").seconds,
                    row.first_token,
                    row.per_token,
                    row.seconds,
                )
            ),
        )
    return table


def _notes(rows: list[Cost], evens: list[BreakEven], model: Model, place: Device) -> list[str]:
    lines = []
    for row, even in zip(rows[1:], evens, strict=True):
        if even.tokens is None:
            lines.append(f"{row.spec} does not pay here, up to {even.largest:,} visual tokens of one square image.")
        else:
            lines.append(
                f"{row.spec} pays here from {even.tokens:,} visual tokens on (one square image), and saves "
                f"{even.saved:.0%} of the time at {even.largest:,}."
            )
    longest = model.decoder.longest
    length = rows[0].visual_tokens + rows[0].text_tokens + rows[0].new_tokens
    if longest is not None and length > longest:
        lines.append(f"[yellow]The dense prompt and answer take {length:,} positions; the model has {longest:,}.[/]")
    for row in rows:
        if not row.fits:
            lines.append(
                f"[yellow]{row.spec} does not fit: {row.peak_bytes / 1e9:.1f} GB of {row.memory / 1e9:.0f} GB.[/]"
            )
    kind = "measured"
    if not place.measured:
        kind = f"peak figures, {place.launch * 1e6:g} us per kernel assumed: times are lower bounds"
    lines.append(f"[dim]{place.title}: {kind}. {place.source}.[/]")
    return lines


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()


def _table(*columns: str, title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
