"""Describe the things in a scene: their boxes, and which of the nine places they are at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.scenes.vocabulary import PLACES

Kind = Literal["shape", "word", "number", "bar", "digit", "photo"]


@dataclass(frozen=True)
class Thing:
    """One thing in an image: what it is and the box of its ink ``(x0, y0, x1, y1)`` in pixels.

    >>> Thing("shape", (10.0, 10.0, 20.0, 20.0), colour="red", shape="star", size="small").centre
    (15.0, 15.0)
    """

    kind: Kind
    box: tuple[float, float, float, float]
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    word: str | None = None
    """The word that is drawn, or the word beside a number in a list."""
    value: int | None = None
    """The number that is drawn, the height of a bar, or the digit."""
    mark: int | None = None
    """The little digit drawn on a shape."""
    photo: str | None = None
    """The class of a photo."""

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def extent(self) -> float:
        """The longer side of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)

    def place(self, canvas: int, margin: float = 0.0) -> str | None:
        """Return the place that holds the centre, one of nine; None if it is within ``margin`` of a border of thirds.

        >>> Thing("digit", (0, 0, 20, 20), value=3).place(192)
        'top-left'
        """
        cells = []
        for c in self.centre:
            u = c / canvas * 3
            if min(abs(u - 1), abs(u - 2)) < 3 * margin:
                return None
            cells.append(min(int(u), 2))
        return PLACES[cells[1] * 3 + cells[0]]
