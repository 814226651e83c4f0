"""Read rows from a dict of columns: their ids, images and questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.errors import FoveateError, shown
from foveate.images import decode_image, open_image

Columns = Mapping[str, Sequence[Any]]
"""Columns of rows by name, equally long: lists or arrays."""

ID_DIGITS = 24
"""Hexadecimal digits of an id that is made of a row's contents."""


def row_count(columns: Columns, needed: Sequence[str]) -> int:
    """Return how many rows there are.

    Raises:
        FoveateError: a column is missing, or they aren't equally long.
    """
    missing = [name for name in needed if name not in columns]
    if missing:
        raise FoveateError(f"there is no column {missing[0]}, but {', '.join(sorted(columns)) or 'none'}; rename one")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise FoveateError(f"columns differ in length: {', '.join(f'{k} {v}' for k, v in lengths.items())}")
    return lengths[needed[0]]


def ids_of(columns: Columns, needed: Sequence[str]) -> list[str]:
    """Return the id of each row: its column "id" as text, or else a fingerprint of what the row holds.

    >>> ids_of({"image": ["a.png", "a.png"], "question": ["what ?", "where ?"]}, ["image", "question"])
    ['8ced84e0f254d166ee7fab6f', '6d951f22803538f924082610']

    Args:
        columns: of the rows.
        needed: the columns that make the fingerprint.

    Raises:
        FoveateError: a column is missing, or they aren't equally long.
    """
    count = row_count(columns, needed)
    if "id" in columns:
        return [str(value) for value in columns["id"]]
    return [_fingerprint([columns[name][row] for name in needed]) for row in range(count)]


def _fingerprint(cells: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for cell in cells:
        content = cell_bytes(cell)
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:ID_DIGITS]


def cell_bytes(cell: Any) -> bytes:
    """Return bytes that tell a cell from others: its text, its path, its file or its pixels."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Image.Image | np.ndarray):
        pixels = np.asarray(cell)
        return f"{pixels.shape} {pixels.dtype}".encode() + np.ascontiguousarray(pixels).tobytes()
    return str(cell).encode("utf-8", "backslashreplace")


def image_of(cell: Any) -> Image.Image:
    """Return the image of a cell, mode "RGB".

    Args:
        cell: a path; the bytes of an image file; a mapping with "bytes" or "path", as `datasets` has it; a PIL image;
            or an array `(H, W, 3)` or `(H, W)` uint8.

    Raises:
        FoveateError: it is none of these, or can't be read.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str | Path):
        return open_image(str(cell))
    if isinstance(cell, bytes):
        return decode_image(cell)
    if isinstance(cell, Image.Image):
        return cell.convert("RGB")
    if isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and cell.ndim in (2, 3) and cell.size:
        try:
            return Image.fromarray(cell).convert("RGB")
        except TypeError:
            raise FoveateError(f"an array of shape {cell.shape} is no image; give (H, W, 3)") from None
    raise FoveateError(f"an image is a path, the bytes of a file, a PIL image or an array of uint8, not {shown(cell)}")


def question_of(cell: Any) -> str:
    """Return the question of a cell.

    Raises:
        FoveateError: it is no text.
    """
    if not isinstance(cell, str):
        raise FoveateError(f"a question is text, not {shown(cell)}")
    return str(cell)
