"""Quotes in specs: a value in quotes may hold the characters that otherwise separate options, places and steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["open_quote", "pieces", "quote", "unquote"]

# A quote opens a value, so it follows an equals sign; inside, the same quote twice is one character.
_QUOTED: Final = re.compile(r"""(?<==)(?P<blank>\s*)(?:"(?:[^"]|"")*"|'(?:[^']|'')*')""")
_OPEN: Final = re.compile(r"""=\s*(["'])""")
_SPECIAL: Final = re.compile(r"""[+:@=,"'\s]""")


def pieces(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Split a text at a separator outside quotes, and yield each piece with its place in the text.

    >>> list(pieces('atp:adapter="a:b+c":seed=1', ":"))
    [(0, 'atp'), (4, 'adapter="a:b+c"'), (20, 'seed=1')]
    """
    offset = 0
    # Quoted values of the same length without any separator.
    for piece in _QUOTED.sub(lambda found: "\0" * len(found[0]), text).split(separator):
        yield offset, text[offset : offset + len(piece)]
        offset += len(piece) + len(separator)


def quote(text: str) -> str:
    """Write a value for a spec, in quotes if it needs them.

    >>> quote("runs/atp"), quote('a+"b" c')
    ('runs/atp', '"a+""b"" c"')
    """
    return '"' + text.replace('"', '""') + '"' if not text or _SPECIAL.search(text) else text


def unquote(text: str) -> str:
    """Read a value that may be in quotes.

    >>> unquote("runs/atp"), unquote('"a+""b"" c"'), unquote("'it''s'")
    ('runs/atp', 'a+"b" c', "it's")
    """
    mark = text[:1]
    if mark in {'"', "'"} and len(text) > 1 and text.endswith(mark):
        return text[1:-1].replace(mark * 2, mark)
    return text


def open_quote(text: str) -> int | None:
    """Return the place of a quote that opens a value and is never closed.

    >>> open_quote('atp:adapter="my runs')
    12
    """
    found = _OPEN.search(_QUOTED.sub(lambda quoted: "\0" * len(quoted[0]), text))
    return None if found is None else found.start(1)
