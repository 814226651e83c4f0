"""What commands print: results on stdout as tables or JSON, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
