"""What commands print: results on stdout as tables or JSON, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 132
"""Columns of output that is piped or redirected: 80, rich's default, would break rows."""

JSON_HINT = "All values as JSON: add --json."


def console() -> Console:
    """Return a console for stdout, as wide as the terminal or `WIDTH`."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def notes() -> Console:
    """Return a console for stderr: progress, and notes that are not results."""
    from rich.console import Console

    return Console(stderr=True)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table with columns of text."""
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def add_number_columns(to: Table, *columns: str) -> None:
    """Add columns that are aligned to the right."""
    for column in columns:
        to.add_column(column, justify="right")


@dataclass(frozen=True)
class Column:
    """A column of a table that is fitted to the terminal.

    Attributes:
        name: its heading.
        short: its heading where there is less room; "" for the same.
        text: whether it holds text, which is aligned to the left and may be wrapped.
        optional: whether it is left out where there is too little room.
    """

    name: str
    short: str = ""
    text: bool = False
    optional: bool = False


_READABLE = 24
"""Characters of a text that a table must have room for; longer ones are wrapped."""


def fitted_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, title: str = "") -> Table:
    """Return a table for a terminal: with short headings, or without optional columns, if it would not fit otherwise.

    Args:
        columns: all of them.
        rows: cells as markup, one per column.
        width: of the terminal, in characters.
        title: stands above the table.

    >>> columns = (Column("spec", text=True), Column("visual tokens", "tokens"), Column("mean", optional=True))
    >>> for width in (40, 27, 17):
    ...     print([column.header for column in fitted_table(columns, [("cluster:64", "64", "64.0")], width).columns])
    ['spec', 'visual tokens', 'mean']
    ['spec', 'tokens', 'mean']
    ['spec', 'tokens']
    """
    from rich.measure import Measurement

    for short, optional in ((False, True), (True, True), (True, False)):
        chosen = [number for number, column in enumerate(columns) if optional or not column.optional]
        shown, probe = table(title=title or None), table()
        if short:
            shown.padding = probe.padding = (0, 1, 0, 0)
        for made in (shown, probe):
            for number in chosen:
                column = columns[number]
                name = (column.short if short else "") or column.name
                # No spec may be cut short.
                made.add_column(
                    name, justify="left" if column.text else "right", no_wrap=not column.text, overflow="fold"
                )
        for row in rows:
            shown.add_row(*(row[number] for number in chosen))
            probe.add_row(*(row[number][:_READABLE] if columns[number].text else row[number] for number in chosen))
        wide = console()
        wide.width = 1000
        if Measurement.get(wide, wide.options, probe).maximum <= width:
            break
    return shown


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def spinner(action: str) -> Iterator[None]:
    """Show what is being done on stderr, if that is a terminal."""
    with notes().status(f"{action} ..."):
        yield


@contextmanager
def loading(model: str | Path | None) -> Iterator[None]:
    """Show on stderr, if that is a terminal, that a model is being loaded; of one on the hub, how the download goes."""
    from foveate.hub import is_hub_name

    if model is None or not is_hub_name(model) or not sys.stderr.isatty():
        with spinner("Loading the model"):
            yield
        return
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    notes().print(f"Loading {model}, from the hub or from the cache ...", highlight=False)
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on stderr, if that is a terminal; yields a function of the steps done, all steps, and a label."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=notes(), transient=True) as progress:
        bar = progress.add_task("")
        yield lambda done, total, label="": progress.update(bar, completed=done, total=total, description=label)


def silence_transformers() -> None:
    """Keep the progress bars and advice of transformers and huggingface_hub out of the output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # huggingface_hub tells of every try to reach the hub.
    hub_logging.set_verbosity_error()
