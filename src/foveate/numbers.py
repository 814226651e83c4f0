"""Check numbers that users give: as text in specs and recipes, and as arguments of functions.

Text is a number if it has ASCII digits alone, with a sign, a point and an exponent. Python's own `int` and `float` read
more: `1_000`, full-width digits, `nan` and `inf`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from foveate.errors import FoveateError, quoted

MOST: Final = 999_999_999
"""The largest count of anything: tokens, steps, questions, rows."""

LARGEST_SEED: Final = 2**32 - 1
"""numpy's generators take no larger seed; torch's would."""

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,30}")
_REAL: Final = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")
_RATIO: Final = re.compile(r"([+-]?[0-9]{1,30}) ?/ ?([0-9]{1,30})")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?")

_PLACES: Final = 400
"""The most decimal places of a fraction; any float has fewer."""


@dataclass(frozen=True)
class Between:
    """The range of a number, bounds included; it is written in the annotation of an option.

    >>> from typing import Annotated
    >>> Seed = Annotated[int, Between(0, LARGEST_SEED)]
    """

    low: float
    high: float = MOST

    def __str__(self) -> str:
        if self.high in (MOST, math.inf):
            return f"from {self.low:,} on"
        return f"from {self.low:,} to {self.high:,}"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


SEED: Final = Between(0, LARGEST_SEED)
"""What any seed may be."""

ANY: Final = Between(-1.7976931348623157e308, 1.7976931348623157e308)
"""What any number may be that has no range of its own: finite."""


def read_whole(text: str) -> int:
    """Read a whole number.

    Raises:
        ValueError: the text is something else, or has over 30 digits.

    >>> read_whole("-2")
    -2
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def read_real(text: str) -> float:
    """Read a number.

    Raises:
        ValueError: the text is something else, or no float is as large or as near to 0.

    >>> read_real("1e-3"), read_real(".5")
    (0.001, 0.5)
    """
    if not _REAL.fullmatch(text):
        raise ValueError(text)
    value = float(text)
    if math.isinf(value) or (value == 0 and re.search("[1-9]", text.lower().partition("e")[0])):
        raise ValueError(text)
    return value


def read_decimal(text: str) -> Fraction:
    """Read a decimal number exactly.

    Raises:
        ValueError: the text is something else, has over 400 decimal places or an exponent over 999.

    >>> read_decimal("0.1")
    Fraction(1, 10)
    """
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    number = Fraction(text)
    if number.denominator > 10**_PLACES:
        raise ValueError(text)
    return number


def read_share(value: Any) -> Fraction:
    """Read a part of a whole by its written form: 0.1 is a tenth, not the nearest binary number.

    Args:
        value: a number, or text such as "1/3", "0.25" or "25e-2".

    Raises:
        ValueError: it is something else, or isn't above 0 and up to 1.

    >>> read_share("1/3"), read_share(0.1), read_share(1)
    (Fraction(1, 3), Fraction(1, 10), Fraction(1, 1))
    """
    text = str(value).strip(" ") if isinstance(value, str | float | Fraction) else ""
    if isinstance(value, int) and not isinstance(value, bool):
        text = "1" if value == 1 else ""
    if ratio := _RATIO.fullmatch(text):
        if not int(ratio[2]):
            raise ValueError(text)
        share = Fraction(int(ratio[1]), int(ratio[2]))
    else:
        share = read_decimal(text)
    if not 0 < share <= 1:
        raise ValueError(text)
    return share


def check_whole(name: str, value: Any, within: Between = Between(-MOST)) -> int:
    """Return an argument that must be a whole number.

    Args:
        name: of the argument, for the error.
        value: what was given.
        within: the range of the number.

    Raises:
        FoveateError: it is something else, or out of range.

    >>> check_whole("seed", -1, SEED)
    Traceback (most recent call last):
    foveate.errors.FoveateError: seed must be a whole number from 0 to 4,294,967,295, not -1
    """
    number = _is_one(value) and hasattr(value, "__index__")
    if not number or int(value) not in within:
        raise FoveateError(f"{name} must be a whole number{_ending(within)}, not {quoted(value)}")
    return int(value)


def check_real(name: str, value: Any, within: Between = ANY) -> float:
    """Return an argument that must be a finite number.

    Args:
        name: of the argument, for the error.
        value: what was given.
        within: the range of the number.

    Raises:
        FoveateError: it is something else, NaN, infinite, or out of range.

    >>> check_real("alpha", float("nan"))
    Traceback (most recent call last):
    foveate.errors.FoveateError: alpha must be a number, not nan
    """
    number = _is_one(value) and hasattr(value, "__float__")
    # NaN is in no range.
    if not number or (value if isinstance(value, int) else float(value)) not in within:
        raise FoveateError(f"{name} must be a number{_ending(within)}, not {quoted(value)}")
    return float(value)


def _is_one(value: Any) -> bool:
    """Whether a value may be one number: no boolean, no class, no array of several."""
    return not isinstance(value, bool | type) and getattr(value, "shape", ()) == ()


def _ending(within: Between) -> str:
    return "" if within.low <= -MOST else f" {within}"
