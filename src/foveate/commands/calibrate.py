"""`foveate calibrate`: measure this machine for the cost model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import JsonOption, checked_device
from foveate.commands.output import (
    add_number_columns,
    console,
    print_json,
    silence_transformers,
    spinner,
    table,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from rich.table import Table


def calibrate(
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call this device in `foveate cost --device`.")
    ] = "this-machine",
    place: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            callback=checked_device,
            help="What to measure: cpu, cuda, cuda:1.",
            show_default="cuda if there is a GPU, else cpu",
        ),
    ] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="The data type to measure in: float32, bfloat16, float16.",
            show_default="float32 on a CPU, else bfloat16",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="CPU threads.", show_default="as many as torch uses"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="S", help="About how long to measure.", show_default="20; with --check 40"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The file to write.", show_default="in your configuration folder"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Time prefills as well, and compare them with the prediction.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw the comparison of --check as a PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine, so that `foveate cost` predicts its times.

    Measures matrix products, attention, memory bandwidth and kernel launches,
    and writes them to a device file.

    Example: foveate calibrate --name my-laptop
    """
    from foveate import plots
    from foveate.costmodel.device import read_devices, save, user_file
    from foveate.files import check_writable_file, is_file, shown_path

    if not re.fullmatch(r"[\w.-]{1,60}", name):
        raise FoveateError(f"--name {name!r} is not valid; use at most 60 letters, digits, dots and dashes")
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise FoveateError(f"--threads is {threads:,}; it must be from 1 to {cores}, the CPU cores of this machine")
    if seconds is not None and not 0 <= seconds <= 3600:
        raise FoveateError(f"--seconds is {seconds:g}; it must be from 0 to 3600")
    # Whatever can't be read or written is refused before a minute of measuring.
    path = out or user_file()
    check_writable_file(path)
    if is_file(path):
        # The device is added to the others in it.
        read_devices(path)
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise FoveateError(f"--picture {shown_path(picture)} is written as PNG; name a file that ends in .png")
        check_writable_file(picture)
        with plots.style():
            pass  # matplotlib is there.
    import torch

    from foveate.costmodel import check as checking
    from foveate.costmodel.calibrate import calibrate as measure

    silence_transformers()
    if threads is not None:
        torch.set_num_threads(threads)
    points = []
    check = check or picture is not None
    if seconds is None:
        seconds = 40.0 if check else 20.0
    with spinner(f"Measuring for about {seconds:g} seconds", working=True):
        if check:
            found, points = checking.check(name, place, dtype, seconds)
        else:
            found = measure(name, place, dtype, seconds)
    save(found, path)
    if picture is not None:
        checking.draw(found, points, picture)
    if as_json:
        print_json(
            {
                "device": vars(found) | {"rates": dict(found.rates)},
                "file": str(path),
                "check": [point.to_dict() for point in points],
                "picture": None if picture is None else str(picture),
            }
        )
        return
    screen = console()
    ((kind, rate),) = found.rates.items()
    screen.print(f"{found.name}: {found.title}", style="bold")
    screen.print(
        f"  {rate / 1e9:,.1f} GFLOP/s in {kind}, {found.bandwidth / 1e9:,.1f} GB/s of weights, "
        f"{found.launch * 1e6:.1f} us per kernel",
    )
    if points:
        screen.print(_check_table(points))
    screen.print(f"Saved: {path}", soft_wrap=True)
    use = found.name if out is None else str(path)
    screen.print(f"Use it: foveate cost --device {use}", style="dim", soft_wrap=True)


def _check_table(points: Sequence[Any]) -> Table:
    shown = table("decoder", title="Prefills")
    add_number_columns(shown, "tokens", "predicted ms", "measured ms", "predicted / measured")
    for point in points:
        milliseconds = (f"{seconds * 1e3:.2f}" for seconds in (point.predicted, point.measured))
        shown.add_row(point.decoder, f"{point.tokens}", *milliseconds, f"{point.ratio:.2f}")
    return shown
