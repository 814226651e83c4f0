"""Write measured numbers as text: token counts, shares and differences, with their intervals."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping

__all__ = [
    "count",
    "direction",
    "interval",
    "markdown_cell",
    "outward",
    "percent_text",
    "points",
    "points_text",
    "printable",
    "share_text",
]

Bounds = Mapping[str, float | None]
"""An interval as data: `value`, `low` and `high`, as shares of 1; bounds are None if there are too few images."""


def count(tokens: float) -> str:
    """Write a number of tokens: whole if it is the same for all images.

    >>> count(64.0), count(63.52)
    ('64', '63.5')
    """
    return f"{tokens:.0f}" if tokens == round(tokens) else f"{tokens:.1f}"


def points(share: float) -> str:
    """Write a difference of shares in percentage points, with its sign.

    >>> points(-0.104), points(0.0)
    ('-10.4', '0.0')
    """
    return _signed(share * 100)


def outward(bounds: Bounds) -> tuple[float, float] | None:
    """Return the bounds of a difference in percentage points, rounded to tenths, away from the middle.

    So an interval that is printed holds what the exact one holds. Without bounds, return None.

    >>> outward({"low": -0.14, "high": -0.0004}), outward({"low": -0.20001, "high": 0.013})
    ((-14.0, 0.0), (-20.1, 1.3))
    """
    low, high = bounds["low"], bounds["high"]
    if low is None or high is None:
        return None
    # Binary fractions such as -0.2 * 1000 may end in ...01, which is no tenth more.
    return math.floor(round(low * 1000, 6)) / 10 + 0.0, math.ceil(round(high * 1000, 6)) / 10 + 0.0


def direction(bounds: Bounds) -> int:
    """Return -1 if a difference is clearly below zero, 1 if clearly above, 0 otherwise or without an interval.

    Clearly: the interval as it is printed leaves zero out.

    >>> direction({"low": -0.14, "high": -0.002}), direction({"low": -0.14, "high": -0.0004})
    (-1, 0)
    """
    ends = outward(bounds)
    if ends is None:
        return 0
    low, high = ends
    return -1 if high < 0 else 1 if low > 0 else 0


def interval(bounds: Bounds) -> str:
    """Write the bounds of a difference in percentage points, rounded outward; "" without them.

    >>> interval({"value": -0.1, "low": -0.2, "high": 0.013})
    '[-20.0, +1.3]'
    """
    ends = outward(bounds)
    return "" if ends is None else f"[{_signed(ends[0])}, {_signed(ends[1])}]"


def points_text(bounds: Bounds, unit: str = "points ") -> str:
    """Write a difference in percentage points with its interval, if it has one.

    Args:
        bounds: of the difference.
        unit: stands between them, with a blank at its end; "" for table cells.

    >>> points_text({"value": 0.097, "low": 0.063, "high": 0.131})
    '+9.7 points (+6.3 to +13.1)'
    """
    value, ends = points(bounds["value"] or 0.0), outward(bounds)
    return f"{value} {unit}".rstrip() if ends is None else f"{value} {unit}({_signed(ends[0])} to {_signed(ends[1])})"


def share_text(bounds: Bounds) -> str:
    """Write a share in percent with its interval, if it has one.

    >>> share_text({"value": 0.46, "low": 0.431, "high": 0.489})
    '46.0% (43.1% to 48.9%)'
    """
    if bounds["low"] is None:
        return "{value:.1%}".format(**bounds)
    return "{value:.1%} ({low:.1%} to {high:.1%})".format(**bounds)


def percent_text(bounds: Bounds) -> str:
    """Write a difference of shares in percent with its interval, if it has one.

    >>> percent_text({"value": -0.036, "low": -0.063, "high": -0.01})
    '-3.6% [-6.3%, -1.0%]'
    """
    value, ends = points(bounds["value"] or 0.0), outward(bounds)
    return f"{value}%" if ends is None else f"{value}% [{_signed(ends[0])}%, {_signed(ends[1])}%]"


def printable(text: str) -> str:
    """Return text on one line: line breaks, control characters and halves of characters as Python writes them.

    >>> print(printable("red\\nor \\x1b[31mblue"))
    red\\nor \\x1b[31mblue
    """
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else ascii(each)[1:-1] for each in text
    )


def markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table, where a bar would end the cell.

    >>> markdown_cell("red | <b>"), markdown_cell("two\\nlines")
    ('red \\\\| &lt;b>', 'two\\\\nlines')
    """
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def _signed(number: float) -> str:
    """Write a number with its sign and one digit after the point; zero has no sign."""
    return f"{number:+.1f}" if round(number, 1) else "0.0"
