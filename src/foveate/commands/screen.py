"""A console that prints texts as they are, and each row of a table as a block of lines where the table doesn't fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Span, Text

from foveate.commands.streams import printable, writing

__all__ = ["NARROWEST", "READABLE", "Screen", "needed_width"]

NARROWEST: Final = 16
"""The least width in characters; less would print one letter a line."""
_BESIDE: Final = 12
"""The least width of what stands beside a name; with less it follows the name."""
READABLE: Final = 24
"""Characters of a text that a column must have room for; longer ones are wrapped."""

_ASCII_HEAD: Final = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""rich's SIMPLE_HEAD in ASCII."""


class Screen(Console):
    """A console for texts of users and models: no markup, no emoji codes, no control characters.

    What its stream can't encode is printed by its likeness in ASCII.

    Args:
        lossy: whether what can't be written is lost, as on stderr, rather than an error.
        **options: for `rich.console.Console`.
    """

    def __init__(self, *, lossy: bool = False, **options: Any) -> None:
        self._lossy = lossy
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables.

        Raises:
            FoveateError: stdout can't be written.
        """
        with suppress(OSError) if self._lossy else writing():
            for each in objects or ("",):
                super().print(self._fitted(each), **options)

    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to `writing`."""
        raise BrokenPipeError

    def _fitted(self, given: Any) -> Any:
        if not isinstance(given, Table):
            return self._plain(given)
        for column in given.columns:
            column.header, column.footer = self._plain(column.header), self._plain(column.footer)
            column._cells[:] = map(self._plain, column.cells)
        given.title, given.caption = self._plain(given.title), self._plain(given.caption)
        if given.box is SIMPLE_HEAD and self.options.ascii_only:
            given.box = _ASCII_HEAD
        return given if needed_width(given) <= self.width else Group(*_blocks(given, self.width))

    def _plain(self, given: Any) -> Any:
        """Return a text that this console's stream can show."""
        if isinstance(given, str):
            return Text(printable(given, self.encoding))
        if not isinstance(given, Text):
            return given
        pieces = [printable(each, self.encoding) for each in given.plain]
        starts = [0, *accumulate(map(len, pieces))]
        made = given.blank_copy("".join(pieces))
        made.spans = [
            Span(starts[min(span.start, len(pieces))], starts[min(span.end, len(pieces))], span.style)
            for span in given.spans
        ]
        return made


def needed_width(given: Table) -> int:
    """Return the width in characters at which no cell of a table is cut, and texts are wrapped at their least width.

    That is the column's own, or `READABLE`.
    """
    width = 0
    for column in given.columns:
        widest = max(cell_len(line) for text in (column.header, *column.cells) for line in str(text).split("\n"))
        width += widest if column.no_wrap else min(widest, column.min_width or READABLE)
        width += given.padding[1] + given.padding[3]
    if given.box is not None:
        width += len(given.columns) + 1
    return width if given.pad_edge else width - given.padding[1]


def _blocks(given: Table, width: int) -> Iterator[RenderableType]:
    """Yield a table as lines: its title, for each row its first cell and under it the others by name, its caption."""
    if given.title:
        yield _text(given.title, "bold")
    names = [str(column.header) for column in given.columns[1:]]
    label = max(map(cell_len, names), default=0)
    beside = width - label - 4 >= _BESIDE
    for row, cells in zip(given.rows, zip(*(column.cells for column in given.columns), strict=True), strict=True):
        if not any(map(str, cells)):
            # An empty row parts two groups.
            continue
        yield _text(cells[0], "bold")
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(width=label if beside else None, overflow="fold", style="dim")
        lines.add_column(overflow="fold")
        for column, name, cell in zip(given.columns[1:], names, cells[1:], strict=True):
            value = _text(cell, column.style)
            if value.plain and beside:
                lines.add_row(name, value, style=row.style)
            elif value.plain:
                lines.add_row(Text.assemble(f"{name}: ", value), style=row.style)
        yield Padding(lines, (0, 0, 0, 2))
    if given.caption:
        yield _text(given.caption, "dim")


def _text(given: Any, style: Any) -> Text:
    """Return a cell as text, with a style under its own."""
    return Text.assemble(given if isinstance(given, Text) else str(given), style=style or "")
