"""Pieces of Markdown that several generators write: tables, lists, paragraphs, links to source files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 120
"""Longest line of a generated paragraph, in characters."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Return a Markdown table.

    Args:
        columns: titles of the columns.
        rows: cells of each row.
        align: a letter per column, "l" or "r"; columns without a letter have no alignment.

    >>> print(table(["method", "ms"], [["`pool`", "0.3"]], "lr"), end="")
    | method | ms |
    |:--|--:|
    | `pool` | 0.3 |
    """
    rules = [{"l": ":--", "r": "--:"}[letter] for letter in align]
    rules += ["---"] * (len(columns) - len(rules))
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def records(columns: Sequence[str], rows: Iterable[Mapping[str, str]], left: Iterable[str] = ()) -> str:
    """Return a table of rows given by column name; columns in `left` are aligned left, all others right.

    >>> print(records(["spec", "ms"], [{"ms": "0.3", "spec": "pool:64", "unused": ""}], ["spec"]), end="")
    | spec | ms |
    |:--|--:|
    | pool:64 | 0.3 |
    """
    align = "".join("l" if column in left else "r" for column in columns)
    return table(columns, ([row[column] for column in columns] for row in rows), align)


def fill(text: str, first: str = "") -> str:
    """Break a paragraph into lines; those after the first are indented as far as `first` reaches."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def paragraphs(text: str) -> str:
    """Break every paragraph of a text into lines."""
    return "\n\n".join(fill(part) for part in text.split("\n\n")) + "\n"


def bullets(*items: str) -> str:
    """Return a bullet list.

    >>> print(bullets("one", "two"), end="")
    * one
    * two
    """
    return "\n".join(fill(item, "* ") for item in items) + "\n"


def packages(environment: Mapping[str, Any]) -> str:
    """Return the versions under which something was measured: "foveate 0.1.0, torch 2.13.0"."""
    return ", ".join(f"{name} {version}" for name, version in environment["packages"].items())


def machine(environment: Mapping[str, Any]) -> str:
    """Return the name of the processor or the GPU on which something was measured."""
    return environment["processor"] if environment["device"] == "cpu" else environment["device"]


def with_part(page: str, name: str, text: str) -> str:
    """Return a page with new text between its comments `<!-- NAME -->` and `<!-- end -->`.

    >>> with_part("by hand <!-- list -->old<!-- end --> by hand", "list", "new")
    'by hand <!-- list -->new<!-- end --> by hand'
    """
    before, begin, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- end -->")
    assert begin, f"the page has no comment <!-- {name} -->"
    assert end, f"nothing ends <!-- {name} -->"
    return before + begin + text + end + after


def with_measured_part(page: str, measured: str) -> str:
    """Return a page with new text between its lines `<!-- measured -->` and `<!-- end -->`."""
    return with_part(page, "measured", "\n" + measured)
