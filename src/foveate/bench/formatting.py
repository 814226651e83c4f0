"""Write measured numbers as text: token counts, shares and differences, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["count", "interval", "percent_text", "points", "points_text", "share_text"]

Bounds = Mapping[str, float]
"""An interval as data: `value`, `low` and `high`, as shares of 1."""


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
    return f"{share * 100:+.1f}" if round(share * 100, 1) else "0.0"


def interval(bounds: Bounds) -> str:
    """Write the bounds of a difference in percentage points.

    >>> interval({"value": -0.1, "low": -0.2, "high": 0.013})
    '[-20.0, +1.3]'
    """
    return f"[{points(bounds['low'])}, {points(bounds['high'])}]"


def points_text(bounds: Bounds, unit: str = "points ") -> str:
    """Write a difference in percentage points with its interval.

    Args:
        bounds: of the difference.
        unit: stands between them, with a blank at its end; "" for table cells.

    >>> points_text({"value": 0.097, "low": 0.063, "high": 0.131})
    '+9.7 points (+6.3 to +13.1)'
    """
    value, low, high = (100 * bounds[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} {unit}({low:+.1f} to {high:+.1f})"


def share_text(bounds: Bounds) -> str:
    """Write a share in percent with its interval.

    >>> share_text({"value": 0.46, "low": 0.431, "high": 0.489})
    '46.0% (43.1% to 48.9%)'
    """
    return "{value:.1%} ({low:.1%} to {high:.1%})".format(**bounds)


def percent_text(bounds: Mapping[str, float | None]) -> str:
    """Write a difference of shares in percent with its interval; a missing bound is zero.

    >>> percent_text({"value": -0.036, "low": -0.063, "high": -0.01})
    '-3.6% [-6.3%, -1.0%]'
    """
    low, high = (bounds[end] or 0.0 for end in ("low", "high"))
    return f"{bounds['value']:+.1%} [{low:+.1%}, {high:+.1%}]"
