"""Dense targets: what every patch of a scene shows, as whole numbers that a linear head can learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from foveate.scenes import COLOURS, SHAPES, SIZES, WORDS, Thing

GRID: Final = 24
"""Patches along a side of the image."""

PATCH: Final = 8
"""Pixels along a side of a patch."""

IGNORE: Final = -100

PHOTOS: Final[tuple[str, ...]] = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""Classes of the photos that may be trained on."""

ALL_SHAPES: Final[tuple[str, ...]] = (*SHAPES, "rectangle")

_KINDS: Final = ("ground", "shape", "word", "number", "bar", "digit", "photo")
_COLOURS: Final = tuple(COLOURS)
_SIZES: Final = tuple(SIZES)

TARGETS: Final[dict[str, int]] = {
    "kind": len(_KINDS),
    "centre": 2,
    "colour": len(COLOURS),
    "shape": len(ALL_SHAPES),
    "size": len(SIZES),
    "word": len(WORDS),
    "tens": 11,  # the last: no tens
    "units": 10,
    "mark": 11,  # the last: no digit on this shape
    "photo": len(PHOTOS),
    "column": GRID,
    "row": GRID,
}
"""What is told about every patch, and how many values it has."""

PRESENCE: Final = len(COLOURS) * len(ALL_SHAPES) + len(WORDS) + 10 + len(PHOTOS) + len(_KINDS)
"""Length of the list of what is present in an image: the objective of [CLS]."""


def dense_targets(things: Sequence[Thing]) -> np.ndarray:
    """Tell what each patch shows.

    Returns (24, 24, len(TARGETS)) int64 in the order of ``TARGETS``; -100 where the question does not arise.

    >>> one = dense_targets([Thing("shape", (0, 0, 20, 20), colour="red", shape="star")])
    >>> one[1, 1, :4].tolist(), one[20, 20, :4].tolist()
    ([1, 1, 0, 3], [0, 0, -100, -100])
    """
    out = np.full((GRID, GRID, len(TARGETS)), IGNORE, np.int64)
    out[..., 0] = 0
    out[..., 1] = 0
    out[..., 10] = np.arange(GRID)[None, :]
    out[..., 11] = np.arange(GRID)[:, None]
    for t in things:
        x0, y0, x1, y1 = t.box
        # A patch belongs to a thing that covers at least three of its pixels each way.
        c0, c1 = int(np.ceil((x0 + 3) / PATCH)) - 1, int(np.floor((x1 - 3) / PATCH))
        r0, r1 = int(np.ceil((y0 + 3) / PATCH)) - 1, int(np.floor((y1 - 3) / PATCH))
        cx, cy = (min(int(c // PATCH), GRID - 1) for c in t.centre)
        c0, c1, r0, r1 = (
            max(min(c0, cx), 0),
            min(max(c1, cx), GRID - 1),
            max(min(r0, cy), 0),
            min(max(r1, cy), GRID - 1),
        )
        row = [_KINDS.index(t.kind), 0, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]
        if t.colour is not None:
            row[2] = _COLOURS.index(t.colour)
        if t.shape is not None:
            row[3] = ALL_SHAPES.index(t.shape)
        if t.size is not None:
            row[4] = _SIZES.index(t.size)
        if t.word is not None:
            row[5] = WORDS.index(t.word)
        if t.value is not None:
            row[6] = t.value // 10 if t.value >= 10 else 10
            row[7] = t.value % 10
        if t.kind == "shape":
            row[8] = 10 if t.mark is None else t.mark
        if t.photo is not None:
            row[9] = PHOTOS.index(t.photo)
        out[r0 : r1 + 1, c0 : c1 + 1, :10] = row
        out[cy, cx, 1] = 1
    return out


LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def letter_targets(things: Sequence[Thing]) -> np.ndarray:
    """Tell which character each patch of a text shows, near enough: all characters are taken to be equally wide.

    Returns (24, 24) int64 of indices into ``LETTERS``, -100 where there is no text. With it, words are learned
    much sooner.

    >>> one = letter_targets([Thing("word", (0, 0, 24, 8), word="cat")])
    >>> "".join(LETTERS[i] for i in one[0, :3])
    'cat'
    """
    out = np.full((GRID, GRID), IGNORE, np.int64)
    for t in things:
        if t.kind not in ("word", "number"):
            continue
        text = str(t.word) if t.kind == "word" else str(t.value)
        x0, y0, x1, y1 = t.box
        for r in range(int((y0 + 3) // PATCH), min(int((y1 - 3) // PATCH), GRID - 1) + 1):
            for c in range(max(int(x0 // PATCH), 0), min(int(x1 // PATCH), GRID - 1) + 1):
                middle = (max(x0, c * PATCH) + min(x1, (c + 1) * PATCH)) / 2
                at = int((middle - x0) / (x1 - x0) * len(text))
                out[r, c] = LETTERS.index(text[min(max(at, 0), len(text) - 1)])
    return out


def presence(dense: np.ndarray) -> np.ndarray:
    """Tell what is present in a window of dense targets, from the patches that hold centres.

    Returns (PRESENCE,) float32 of zeros and ones: coloured shapes, words, digits, photos, kinds.

    >>> int(presence(dense_targets([Thing("shape", (0, 0, 20, 20), colour="red", shape="star")])).sum())
    2
    """
    out = np.zeros(PRESENCE, np.float32)
    for c in dense[dense[..., 1] == 1]:
        base = 0
        if c[2] >= 0 and c[3] >= 0:
            out[c[2] * len(ALL_SHAPES) + c[3]] = 1
        base += len(COLOURS) * len(ALL_SHAPES)
        if c[5] >= 0:
            out[base + c[5]] = 1
        base += len(WORDS)
        if c[0] == _KINDS.index("digit"):
            out[base + c[7]] = 1
        base += 10
        if c[9] >= 0:
            out[base + c[9]] = 1
        base += len(PHOTOS)
        out[base + c[0]] = 1
    return out
