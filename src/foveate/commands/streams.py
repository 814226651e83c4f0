"""Standard output and standard error as they are: in any encoding, closed, full, or left by their reader."""

# ruff: noqa: RUF001, RUF002  (this file is about characters that look like others)

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

import typer

from foveate.errors import FoveateError

__all__ = ["carries", "prepare_streams", "printable", "writing"]

HANDLER: Final = "foveate"
"""The name under which codecs know `_replaced`."""

_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal, break or reorder lines, or are half of one; not tabs and newlines."""

_ASCII: Final = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−─━═", "-"),
        **dict.fromkeys("│┃║", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝╠╣╦╩╬", "+"),
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("“”„″", '"'),
        **dict.fromkeys("•∙·", "*"),
        **{"×": "x", "±": "+-", "°": "o", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "Δ": "d", "\u00a0": " "},
    }
)
"""What stands for a character of ours or of common texts where it can't be shown."""


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Return a text that can be printed: nothing in it steers the terminal, and the encoding has every character.

    Args:
        text: any; newlines and tabs stay.
        encoding: of the stream.

    >>> printable("\x1b[31mred\x1b[0m")
    '\\x1b[31mred\\x1b[0m'
    >>> printable("Δ −14 °, café, 猫", "ascii")
    'd -14 o, cafe, \\u732b'
    """
    text = _UNSAFE.sub(lambda found: _escaped(found[0]), text)
    if carries(encoding, text):
        return text
    return "".join(each if carries(encoding, each) else _in_ascii(each) for each in text)


def carries(encoding: str, text: str) -> bool:
    """Return whether an encoding has all characters of a text.

    >>> carries("cp1252", "é"), carries("ascii", "é")
    (True, False)
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    """Write a character as Python would; a byte of a file name that is no UTF-8 as that byte."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _in_ascii(character: str) -> str:
    """Write a character in ASCII: its likeness, its letter without accents, or its number."""
    likeness = character.translate(_ASCII)
    if likeness.isascii():
        return likeness
    letter = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return letter if letter.strip() else _escaped(character)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace what a stream can't encode, as a handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


codecs.register_error(HANDLER, _replaced)


def prepare_streams() -> None:
    """Make stdout and stderr take every text. Closed ones go nowhere."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # Files that are opened later must not get the numbers of the standard streams.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                # Open until the program ends, as the standard streams are.
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)


@contextmanager
def writing() -> Iterator[None]:
    """End the program with exit code 0 if the reader of stdout has left, as in `foveate methods | head -1`.

    Raises:
        FoveateError: stdout can't be written for another reason, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        _discard(sys.stdout)
        # Windows reports a closed pipe as an invalid argument.
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
            raise typer.Exit(0) from None
        raise FoveateError(
            f"the output can't be written ({error.strerror or error}); redirect it to a file on a disk with room"
        ) from error


def _discard(stream: TextIO) -> None:
    """Let a stream that can't be written go nowhere, so that Python doesn't try again when it ends."""
    with suppress(OSError, ValueError):
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, stream.fileno())
        os.close(number)
