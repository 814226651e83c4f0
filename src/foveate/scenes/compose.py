"""Compose scenes: which things, how large, how coloured, and where (continuous places, never a grid of cells)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from PIL import Image, ImageDraw

from foveate.fonts import FONTS
from foveate.scenes.draw import (
    FONT_SHARES,
    RGB,
    background,
    contrast,
    draw_line,
    draw_shape,
    draw_text,
    text_size,
)
from foveate.scenes.things import Thing
from foveate.scenes.vocabulary import COLOURS, SHAPES, SIZES, WORDS

CANVAS: Final = 192
"""Side of a scene in pixels: 24 x 24 patches of 8."""

KINDS: Final[dict[str, float]] = {
    "shapes": 0.26, "crowd": 0.14, "words": 0.20, "list": 0.13, "chart": 0.13, "tiny": 0.14,
}  # fmt: skip
"""The kinds of scenes and how often each is drawn."""

Box = tuple[float, float, float, float]


def _jitter(rng: random.Random, rgb: RGB, by: int = 12) -> RGB:
    r, g, b = (min(255, max(0, c + rng.randint(-by, by))) for c in rgb)
    return r, g, b


def _colours(base: RGB) -> list[str]:
    """Return the colours that differ enough from a background."""
    return [name for name, rgb in COLOURS.items() if contrast(rgb, base) > 48]


def _ink(rng: random.Random, base: RGB) -> list[str]:
    """Return the colours in which small text is legible on a background, in random order."""
    names = [name for name, rgb in COLOURS.items() if contrast(rgb, base) > 90]
    rng.shuffle(names)
    return names


class _Board:
    """Finds free boxes for things that must not touch."""

    def __init__(self, rng: random.Random, gap: float = 3.0) -> None:
        self.rng, self.gap, self.taken = rng, gap, list[Box]()

    def take(self, width: float, height: float, tries: int = 60) -> Box | None:
        for _ in range(tries):
            x = self.rng.uniform(1.5, CANVAS - 1.5 - width)
            y = self.rng.uniform(1.5, CANVAS - 1.5 - height)
            g = self.gap
            if all(x > b[2] + g or x + width < b[0] - g or y > b[3] + g or y + height < b[1] - g for b in self.taken):
                box = (x, y, x + width, y + height)
                self.taken.append(box)
                return box
        return None


def _place_shape(
    rng: random.Random,
    picture: Image.Image,
    board: _Board,
    shape: str,
    colour: str,
    size: str | tuple[float, float],
    mark: int | None = None,
) -> Thing | None:
    low, high = SIZES[size] if isinstance(size, str) else size
    extent = rng.uniform(low, high)
    box = board.take(extent, extent)
    if box is None:
        return None
    turn = rng.randint(-8, 8)
    thing = Thing(
        "shape", box, colour=colour, shape=shape, mark=mark,
        size=size if isinstance(size, str) else None,
    )  # fmt: skip
    rgb = _jitter(rng, COLOURS[colour])
    draw_shape(picture, shape, thing.centre, extent, rgb, turn)
    if mark is not None:
        ink = (255, 255, 255) if contrast(rgb, (255, 255, 255)) > contrast(rgb, (0, 0, 0)) else (0, 0, 0)
        name, points = rng.choice(FONTS[:2]), rng.randint(11, 14)
        width, height = text_size(str(mark), name, points)
        cx, cy = thing.centre
        draw_text(picture, str(mark), (round(cx - width / 2), round(cy - height / 2)), name, points, ink)
    return thing


def _place_text(
    rng: random.Random, picture: Image.Image, board: _Board, text: str, colour: str, points: int
) -> Thing | None:
    name = rng.choices(FONTS, FONT_SHARES)[0]
    width, height = text_size(text, name, points)
    box = board.take(width, height)
    if box is None:
        return None
    x, y = round(box[0]), round(box[1])
    draw_text(picture, text, (x, y), name, points, _jitter(rng, COLOURS[colour]))
    box = (float(x), float(y), float(x + width), float(y + height))
    if text.isdigit():
        return Thing("number", box, colour=colour, value=int(text))
    return Thing("word", box, colour=colour, word=text)


def _shapes(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw three to nine shapes of all sizes."""
    colours, board = _colours(base), _Board(rng)
    palette = rng.sample(colours, min(len(colours), rng.randint(2, 6)))
    forms = rng.sample(SHAPES, rng.randint(2, 6))
    sizes = [rng.choices(("small", "medium", "large"), (3, 3, 2))[0] for _ in range(rng.randint(3, 9))]
    sizes.sort(key=("large", "medium", "small").index)
    things = [_place_shape(rng, picture, board, rng.choice(forms), rng.choice(palette), size) for size in sizes]
    return [t for t in things if t is not None]


def _crowd(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw twenty or more small shapes of a few colours and forms."""
    palette = rng.sample(_colours(base), rng.randint(3, 5))
    forms = rng.sample(SHAPES, rng.randint(3, 5))
    board = _Board(rng, gap=2.0)
    top = rng.uniform(17, 24)
    things = [
        _place_shape(rng, picture, board, rng.choice(forms), rng.choice(palette), (11.0, top))
        for _ in range(rng.randint(20, 28))
    ]
    return [t for t in things if t is not None]


def _words(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw words and numbers in several fonts, sizes and colours, among a few shapes."""
    board, inks = _Board(rng, gap=4.0), _ink(rng, base)
    texts = rng.sample(WORDS, rng.randint(1, 4)) + [str(n) for n in rng.sample(range(1, 100), rng.randint(1, 3))]
    rng.shuffle(texts)
    things: list[Thing | None] = []
    for i, text in enumerate(texts):
        colour = inks[i % len(inks)] if rng.random() < 0.85 else rng.choice(inks)
        things.append(_place_text(rng, picture, board, text, colour, rng.choice((11, 12, 14, 16, 18, 22, 26, 30))))
    for _ in range(rng.randint(0, 3)):
        size = rng.choice(("small", "medium", "medium", "large"))
        things.append(_place_shape(rng, picture, board, rng.choice(SHAPES), rng.choice(_colours(base)), size))
    return [t for t in things if t is not None]


def _list(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw dense small text: rows of a word and a number, in one or two columns, like a receipt."""
    name, points = rng.choices(FONTS, FONT_SHARES)[0], rng.choice((11, 12, 12, 13))
    two = rng.random() < 0.5
    pitch = points + rng.randint(3, 7)
    most = (CANVAS - 16) // pitch
    rows = rng.randint(3, min(most, 10))
    ink = "white" if sum(base) < 300 else rng.choices(("black", "blue", "red"), (6, 1, 1))[0]
    widest = text_size("moon", name, points)[0] + 3
    gap = rng.randint(5, 12)
    number = text_size("88", name, points)[0]
    width = widest + gap + number
    columns = 2 if two and 2 * width + 14 < CANVAS - 8 else 1
    left = rng.randint(4, CANVAS - 4 - columns * (width + 14))
    top = rng.randint(5, CANVAS - 6 - rows * pitch)
    words = rng.sample(WORDS, rows * columns)
    values = rng.sample(range(1, 100), rows * columns)
    things = []
    for i, (word, value) in enumerate(zip(words, values)):
        row, column = i // columns, i % columns
        x, y = left + column * (width + 14), top + row * pitch
        rgb = _jitter(rng, COLOURS[ink], 6)
        sizes = [text_size(t, name, points) for t in (word, str(value))]
        nx = x + width - sizes[1][0]
        draw_line(picture, word, (x, y + points - 2), name, points, rgb)
        draw_line(picture, str(value), (nx, y + points - 2), name, points, rgb)
        things.append(Thing("word", (x, y, x + sizes[0][0], y + points), colour=ink, word=word))
        things.append(Thing("number", (nx, y, nx + sizes[1][0], y + points), colour=ink, word=word, value=value))
    return things


def _chart(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw a bar chart: three to six coloured bars, values from 1 to 9, ruled lines and sometimes printed values."""
    pen = ImageDraw.Draw(picture)
    count = rng.randint(3, 6)
    unit = rng.uniform(9.0, 15.0)
    slot = rng.uniform(18.0, min(28.0, (CANVAS - 34) / count))
    bar = slot * rng.uniform(0.5, 0.8)
    width, height = slot * count, unit * 9
    left = rng.uniform(20, CANVAS - width - 6)
    bottom = rng.uniform(height + 18, CANVAS - 8)
    dark = sum(base) < 300
    line: RGB = (150, 150, 150) if not dark else (110, 110, 110)
    text: RGB = (20, 20, 20) if not dark else (240, 240, 240)
    name, points = rng.choices(FONTS, FONT_SHARES)[0], rng.randint(10, 12)
    for tick in range(0, 10):
        y = round(bottom - tick * unit)
        if tick % 3 == 0:
            pen.line((left - 3, y, left + width, y), fill=line)
            size = text_size(str(tick), name, points)
            draw_text(picture, str(tick), (round(left - 6 - size[0]), round(y - size[1] / 2)), name, points, text)
        else:
            pen.line((left - 2, y, left + 1, y), fill=line)
    pen.line((left, bottom - height, left, bottom), fill=text)
    colours = rng.sample(_colours(base), count)
    values = rng.sample(range(1, 10), count) if rng.random() < 0.7 else [rng.randint(1, 9) for _ in range(count)]
    printed = rng.random() < 0.5
    things = []
    for i, (colour, value) in enumerate(zip(colours, values)):
        x0 = left + i * slot + (slot - bar) / 2
        y0 = bottom - value * unit
        pen.rectangle((round(x0), round(y0), round(x0 + bar), round(bottom)), fill=_jitter(rng, COLOURS[colour]))
        if printed:
            size = text_size(str(value), name, points)
            corner = (round(x0 + bar / 2 - size[0] / 2), round(y0 - size[1] - 3))
            draw_text(picture, str(value), corner, name, points, text)
        things.append(Thing("bar", (x0, y0, x0 + bar, bottom), colour=colour, value=value))
    pen.line((left, bottom, left + width, bottom), fill=text)
    return things


def _tiny(rng: random.Random, picture: Image.Image, base: RGB) -> list[Thing]:
    """Draw large shapes with small digits on them, and one tiny shape."""
    board, colours = _Board(rng), _colours(base)
    pairs = [(s, c) for s in SHAPES if s not in ("ring", "cross", "star") for c in colours]
    chosen = rng.sample(pairs, rng.randint(2, 4))
    things: list[Thing | None] = []
    for shape, colour in chosen:
        mark = rng.randint(0, 9) if rng.random() < 0.8 else None
        things.append(_place_shape(rng, picture, board, shape, colour, (34.0, 60.0), mark))
    things.append(_place_shape(rng, picture, board, rng.choice(SHAPES), rng.choice(colours), (8.5, 12.5)))
    return [t for t in things if t is not None]


_COMPOSERS: Final[dict[str, Callable[[random.Random, Image.Image, RGB], Sequence[Thing]]]] = {
    "shapes": _shapes, "crowd": _crowd, "words": _words, "list": _list, "chart": _chart, "tiny": _tiny,
}  # fmt: skip


def compose(rng: random.Random, kind: str) -> tuple[Image.Image, tuple[Thing, ...]]:
    """Draw a scene of a kind; return the image (192 x 192, RGB) and its things.

    >>> picture, things = compose(random.Random(0), "crowd")
    >>> len(things) >= 15
    True
    """
    picture, base = background(rng, CANVAS)
    return picture, tuple(_COMPOSERS[kind](rng, picture, base))
