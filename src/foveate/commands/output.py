"""What commands print: results on stdout as tables or JSON, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foveate.commands.streams import carries, printable, writing
from foveate.errors import shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH: Final = 132
"""Columns of output that is piped or redirected and has no COLUMNS: 80, rich's default, would break rows."""

JSON_HINT: Final = "All values as JSON: add --json."

_LONGEST_WORD: Final = 240
"""Characters of a word in an error; a longer one loses its middle."""
_LONGEST_ERROR: Final = 1200
"""Characters of an error's line."""
_FIRST_LINE: Final = 2.0
"""Seconds after which a stderr that is no terminal gets a first line of progress."""
_CHECKS: Final = 30.0
"""The same while input is checked: its error should stand alone on stderr, even where importing torch takes long."""
_EVERY: Final = 10.0
"""Seconds between two lines of progress."""


def console() -> Console:
    """Return a console for stdout, which prints texts as they are.

    It is as wide as COLUMNS says, or the terminal; elsewhere `WIDTH`.
    """
    return _console(sys.stdout, None if sys.stdout.isatty() else WIDTH)


def notes() -> Console:
    """Return a console for stderr: progress, and notes that are not results."""
    return _console(sys.stderr, None)


def _console(file: Any, width: int | None) -> Console:
    from foveate.commands.screen import NARROWEST, Screen

    given = os.environ.get("COLUMNS", "")
    if re.fullmatch("[0-9]{1,4}", given) and int(given) > 0:
        width = max(NARROWEST, int(given))
    return Screen(file=file, width=width, lossy=file is sys.stderr)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table with columns of text."""
    from rich import box
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # No name may be cut short.
        shown.add_column(column, overflow="fold")
    return shown


def add_number_columns(to: Table, *columns: str) -> None:
    """Add columns that are aligned to the right."""
    for column in columns:
        to.add_column(column, justify="right", no_wrap=True)


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


def fitted_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, title: str = "") -> Table:
    """Return a table for a terminal: with short headings, or without optional columns, if it would not fit otherwise.

    Where it doesn't fit at all, `console` prints each row as a block of lines, and all columns are in it.

    Args:
        columns: all of them.
        rows: cells, one per column.
        width: of the terminal, in characters.
        title: stands above the table.

    >>> columns = (Column("spec", text=True), Column("visual tokens", "tokens"), Column("mean", optional=True))
    >>> for width in (40, 27, 20, 10):
    ...     print([column.header for column in fitted_table(columns, [("cluster:64", "64", "64.0")], width).columns])
    ['spec', 'visual tokens', 'mean']
    ['spec', 'tokens', 'mean']
    ['spec', 'tokens']
    ['spec', 'visual tokens', 'mean']
    """
    from foveate.commands.screen import needed_width

    shown = _table_of(columns, rows, title)
    for short, optional in ((False, True), (True, True), (True, False)):
        chosen = [number for number, column in enumerate(columns) if optional or not column.optional]
        tried = _table_of(
            [columns[number] for number in chosen], [[row[number] for number in chosen] for row in rows], title, short
        )
        if needed_width(tried) <= width:
            return tried
    return shown


def _table_of(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str, short: bool = False) -> Table:
    shown = table(title=title or None)
    if short:
        shown.padding = 0
    for column in columns:
        name = (column.short if short else "") or column.name
        shown.add_column(name, justify="left" if column.text else "right", no_wrap=not column.text, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def print_json(value: Any) -> None:
    r"""Print a value as indented JSON on stdout; numbers that JSON lacks, NaN and infinity, are null.

    >>> print_json({"share": float("nan"), "text": "\x9b"})
    {
      "share": null,
      "text": "\u009b"
    }
    """
    written = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # The same data in any encoding, and nothing in it steers a terminal.
    if printable(written) != written or not carries(encoding, written):
        written = json.dumps(_finite(value), indent=2).replace("\x7f", "\\u007f")
    print_line(written)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def print_line(text: str) -> None:
    """Print a text on stdout, at once.

    Raises:
        FoveateError: stdout can't be written.
    """
    with writing():
        print(printable(text), flush=True)


def print_note(text: str) -> None:
    """Print a line on stderr; one that can't be written is no reason to stop."""
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    r"""Print why a command ends, as one line on stderr; a spec that can't be read also has its place marked.

    Long texts that it quotes lose their middle, and line breaks in them are written as such.
    """
    marked = re.search(r"\n(?= *\^+ )", text)
    lines = [text] if marked is None else [text[: marked.start()], text[marked.end() :]]
    for line in (line.replace("\n", "\\n").replace("\t", "\\t") for line in lines):
        if marked is None:
            line = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: shortened(word[0], _LONGEST_WORD // 2), line)
        print_note(shortened(line, _LONGEST_ERROR))


class _Lines:
    """Prints lines of progress on stderr from a thread of its own, so that one long step doesn't silence them.

    Args:
        action: what is done.
        first: after how many seconds the first line is printed; None is two.
        detail: says more, when a line is printed.
    """

    def __init__(self, action: str, first: float | None = None, detail: Callable[[], str] | None = None) -> None:
        self.action, self._detail = action, detail
        self._first = _FIRST_LINE if first is None else first
        self._began = time.monotonic()
        self._start: tuple[float, int] | None = None
        self._done = self._total = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, done: int, total: int, label: str = "") -> None:
        """Take the steps that are done, all steps, and what is done now."""
        if self._start is None:
            # What an earlier run has done took no time of this one.
            self._start = (time.monotonic(), done)
        self._done, self._total, self.action = done, total, label or self.action

    def line(self) -> str:
        """Return what is known now."""
        now = time.monotonic()
        parts = [f"{self._done:,} of {self._total:,}"] if self._total else []
        if self._detail is not None and (detail := self._detail()):
            parts.append(detail)
        parts.append(f"{_clock(now - self._began)} so far")
        if self._start is not None and self._done > self._start[1]:
            rate = (now - self._start[0]) / (self._done - self._start[1])
            parts.append(f"about {_clock(rate * (self._total - self._done))} left")
        return f"{self.action}: {', '.join(parts)}"

    def _print(self) -> None:
        wait = self._first
        while not self._ended.wait(wait):
            print_note(self.line())
            wait = _EVERY


def _clock(seconds: float) -> str:
    """Write a time as rich's bars do.

    >>> _clock(75.4)
    '0:01:15'
    """
    return str(timedelta(seconds=round(seconds)))


def _moves() -> bool:
    """Return whether stderr is a terminal on which spinners and bars can move."""
    return sys.stderr.isatty() and not notes().is_dumb_terminal


@contextmanager
def spinner(action: str, working: bool = False) -> Iterator[None]:
    """Show on stderr what is being done: a spinner on a terminal, else a line every ten seconds.

    Args:
        action: what is done.
        working: whether input has been checked. If not, an error may follow, and the first line comes late.
    """
    if not _moves():
        with _Lines(action, None if working else _CHECKS):
            yield
        return
    screen = notes()
    with screen.status(f"{action} ...", spinner="line" if screen.options.ascii_only else "dots"):
        yield


@contextmanager
def finding(model: str | Path | None) -> Iterator[None]:
    """Show on stderr that a model's configuration and processor are read: from the hub that may take long."""
    from foveate.hub import is_hub_name

    hub = model is not None and is_hub_name(model)
    with spinner(f"Asking the hub for {model}" if hub else "Finding the model", working=hub):
        yield


@contextmanager
def loading(model: str | Path | None) -> Iterator[None]:
    """Show on stderr that a model is being loaded; of one on the hub, how the download goes."""
    from foveate.hub import is_hub_name

    if model is None or not is_hub_name(model):
        with spinner("Loading the model", working=True):
            yield
        return
    if not _moves():
        with _Lines(f"Loading {model}, from the hub or from the cache", detail=lambda: _downloaded(str(model))):
            yield
        return
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    notes().print(f"Loading {model}, from the hub or from the cache ...")
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


def _downloaded(model: str) -> str:
    """Say how much of a model's unfinished files has arrived, or nothing."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    arrived = 0
    with suppress(OSError):
        arrived = sum(part.stat().st_size for part in folder.glob("*.incomplete"))
    return f"{arrived / 1e6:,.0f} MB of unfinished files" if arrived else ""


@contextmanager
def progress_bar(action: str = "Working") -> Iterator[Callable[[int, int, str], None]]:
    """Show on stderr how far the work is: a bar on a terminal, else a line every ten seconds.

    Args:
        action: what is done, until a label says more.

    Yields:
        A function of the steps done, all steps, and a label.
    """
    if not _moves():
        with _Lines(action) as lines:
            yield lines.advance
        return
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
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=notes(), transient=True) as progress:
        bar = progress.add_task(action, total=None)
        yield lambda done, total, label="": progress.update(
            bar, completed=done, total=total, description=label or action
        )


def silence_imports() -> None:
    """Keep out of the output what torchao, which transformers imports, says about its missing operators."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_transformers() -> None:
    """Keep the progress bars and advice of transformers and huggingface_hub out of the output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # huggingface_hub tells of every try to reach the hub.
    hub_logging.set_verbosity_error()
