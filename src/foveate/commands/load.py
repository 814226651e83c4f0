"""`foveate load`: a bounded load on a server, dense and compressed in turns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import JsonOption
from foveate.commands.output import (
    JSON_HINT,
    Column,
    console,
    fitted_table,
    print_json,
    progress_bar,
    spinner,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.server_load import Sweep

_COLUMNS = (
    Column("at once"),
    Column("spec", text=True),
    Column("requests", optional=True),
    Column("failed", optional=True),
    Column("prompt tokens", "prompt"),
    Column("answers / s", "per s"),
    Column("x dense", "x"),
    Column("first token p50", "p50"),
    Column("p95"),
    Column("p50 / dense", "/ dense"),
)


def load(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="An OpenAI-compatible server on this machine.", show_default=False)
    ],
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            metavar="SPEC",
            help="What requests name, in turns with dense. Repeat for more.",
            show_default="no spec: the server's own alone",
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N", help="How many requests are under way at once.")
    ] = "1,4,8",
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, max=10_000, help="Requests of a wave.")
    ] = 16,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, max=1_000, help="Waves of each spec at each concurrency.")
    ] = 3,
    image: Annotated[
        str, typer.Option("--image", metavar="WxH", help="The size of the images in pixels.")
    ] = "1024x768",
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="N", min=1, max=100_000, help="Tokens of each answer.")
    ] = 16,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="M", min=0.1, max=1440, help="After which no further round begins.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=1, max=3600, help="Seconds without a byte: it failed.")
    ] = 120.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where load.json and load.png go.", show_default="nowhere"),
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="The server may be on another machine, whose owner agrees.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure throughput and time to the first token of a server, by spec.

    Waves of dense and of compressed requests take turns, about the same generated images.

    Example: foveate load http://localhost:8000 --spec cluster:64 --concurrency 1,4,8,32
    """
    with spinner("Looking at the server"):
        from foveate.bench.environment import environment
        from foveate.commands.cost import image_size
        from foveate.files import check_writable_folder
        from foveate.server_load import Load, Server, rows, run, write
        from foveate.spec import as_spec

        named = [text if text.strip() == "dense" else str(as_spec(text)) for text in spec or ()]
        specs = tuple(dict.fromkeys(["dense", *named])) if named else (None,)
        work = Load(specs, _numbers(concurrency), requests, rounds, new_tokens, image_size(image), minutes=minutes)
        if out is not None:
            check_writable_folder(out)
        server = Server(url, timeout, remote)
        server.model()
    with progress_bar("Sending requests") as advance:
        sweep = run(server, work, advance)
    found = rows(sweep)
    files = [] if out is None else write(sweep, out, environment())
    if as_json:
        print_json({"model": sweep.model, "rows": found, "died": sweep.died, "stopped": sweep.stopped})
    else:
        _print(sweep, found, files)
    if sweep.died:
        raise FoveateError(sweep.died)


def _numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them.

    >>> _numbers("1, 4,8")
    (1, 4, 8)

    Raises:
        FoveateError: it is something else.
    """
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise FoveateError(f"--concurrency {text!r} is no list of numbers; write for instance 1,4,8") from None
    return found


def _print(sweep: Sweep, found: list[dict[str, Any]], files: list[Path]) -> None:
    screen = console()
    load = sweep.load
    width, height = load.size
    title = f"{sweep.model}, images of {width} x {height}, answers of {load.new_tokens} tokens"
    cells = [
        (
            str(row["concurrency"]),
            row["spec"] or "the server's own",
            str(row["requests"]),
            str(row["failed"]),
            f"{row['prompt_tokens']:.0f}",
            f"{row['throughput']:.2f}",
            _ratio(row["throughput_ratio"]),
            _milliseconds(row["first_p50"]),
            _milliseconds(row["first_p95"]),
            _ratio(row["first_ratio"]),
        )
        for row in found
    ]
    screen.print(fitted_table(_COLUMNS, cells, screen.width, title=title))
    screen.print(
        "Ratios are those of two waves of one round: their median, and the least and the greatest.", style="dim"
    )
    if sweep.stopped:
        screen.print(f"After {load.minutes:g} minutes no further round began (--minutes).")
    for file in files:
        screen.print(f"{file}", soft_wrap=True)
    screen.print(JSON_HINT, style="dim")


def _ratio(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    median, least, greatest = (f"{spread[name]:.2f}" for name in ("median", "least", "greatest"))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.0f} ms"
