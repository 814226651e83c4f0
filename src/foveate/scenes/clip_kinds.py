"""Draw the kinds of clips: a lane, events, a change, a glimpse, a moving camera; with questions about each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from foveate.scenes.compose import CANVAS
from foveate.scenes.draw import RGB, background, contrast, draw_shape, draw_text, text_size
from foveate.scenes.questions import Question
from foveate.scenes.vocabulary import COLOURS, PLACES, SHAPES

WAYS: Final[dict[str, tuple[int, int]]] = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
"""Where a digit or the camera moves to, as steps in x and y."""

_FONT: Final = "DejaVuSans-Bold"
_LANE: Final = 48
"""The middle of the band that the digit moves in, in pixels from the top or from the left."""

Drawn = tuple[list[Image.Image], tuple[Question, ...]]
"""Frames and questions. A frame that is shown twice is one image, twice in the list."""


@dataclass(frozen=True)
class _Shape:
    """A shape to be drawn: at which of the nine places, and its centre in pixels."""

    shape: str
    colour: str
    place: str
    centre: tuple[float, float]
    size: float

    def draw(self, picture: Image.Image) -> None:
        draw_shape(picture, self.shape, self.centre, self.size, COLOURS[self.colour], 0)


def _centre(rng: random.Random, place: str) -> tuple[float, float]:
    row, column = divmod(PLACES.index(place), 3)
    x, y = (CANVAS / 3 * (each + 0.5) + rng.uniform(-12, 12) for each in (column, row))
    return x, y


def _colours(base: RGB) -> list[str]:
    return [name for name, rgb in COLOURS.items() if contrast(rgb, base) > 60]


def _shapes(rng: random.Random, base: RGB, count: int) -> list[_Shape]:
    """Return shapes that differ in form, colour and place."""
    names, places, colours = (rng.sample(each, count) for each in (SHAPES, PLACES, _colours(base)))
    return [
        _Shape(name, colour, place, _centre(rng, place), rng.uniform(26, 42))
        for name, colour, place in zip(names, colours, places, strict=True)
    ]


def _frames(ground: Image.Image, shown: Iterable[Sequence[_Shape]]) -> list[Image.Image]:
    """Draw each frame with its shapes; frames that show the same are one image."""
    made: dict[tuple[_Shape, ...], Image.Image] = {}
    frames = []
    for shapes in map(tuple, shown):
        if shapes not in made:
            made[shapes] = ground.copy()
            for shape in shapes:
                shape.draw(made[shapes])
        frames.append(made[shapes])
    return frames


def _detail(rng: random.Random, shape: _Shape) -> Question:
    """Ask for the colour or the place of a shape that stays."""
    if rng.random() < 0.5:
        return Question(f"what colour is the {shape.shape} ?", shape.colour, "detail")
    return Question(f"where is the {shape.shape} ?", shape.place, "detail")


def lane(rng: random.Random, frames: int) -> Drawn:
    """Draw a digit that moves at an even pace, two shapes that are shown once each, and a third shown in some frames.

    >>> len(lane(random.Random(0), 4)[0])
    4
    """
    ground, base = background(rng, CANVAS)
    inks = [rgb for rgb in COLOURS.values() if contrast(rgb, base) > 90]
    way = rng.choice(list(WAYS))
    digit = str(rng.randrange(10))
    one, other, some = rng.sample(SHAPES, 3)
    first, second = rng.sample(range(frames), 2)
    shown = {one: {first}, other: {second}, some: set(rng.sample(range(frames), rng.randint(1, frames)))}
    across = WAYS[way][0] != 0
    places = [42.0, 96.0, 150.0]
    rng.shuffle(places)
    drawn = [
        (shape, place + rng.uniform(-8, 8), rng.uniform(110, 160), rng.uniform(26, 36), rng.choice(inks))
        for shape, place in zip(shown, places, strict=True)
    ]
    ink, middle, size = rng.choice(inks), _LANE + rng.uniform(-14, 14), rng.randint(30, 40)
    made: list[Image.Image] = []
    for number in range(frames):
        picture = ground.copy()
        for shape, along, beside, side, rgb in drawn:
            if number in shown[shape]:
                draw_shape(picture, shape, (along, beside) if across else (beside, along), side, rgb, 0)
        gone = number / (frames - 1)
        at = 30 + (CANVAS - 60) * (gone if sum(WAYS[way]) > 0 else 1 - gone)
        _digit(picture, digit, (at, middle) if across else (middle, at), size, ink)
        made.append(picture)
    return made, (
        Question(f"where does the {digit} move ?", way, "way"),
        _which_first(rng, one, other, first < second),
        Question(f"how many images contain the {some} ?", str(len(shown[some])), "often"),
    )


def _digit(picture: Image.Image, digit: str, centre: tuple[float, float], size: int, ink: RGB) -> None:
    width, height = text_size(digit, _FONT, size)
    draw_text(picture, digit, (round(centre[0] - width / 2), round(centre[1] - height / 2)), _FONT, size, ink)


def _which_first(rng: random.Random, one: str, other: str, first: bool) -> Question:
    """Ask which of two shapes comes first; `first` tells whether it is the first of them."""
    pair = [one, other]
    rng.shuffle(pair)
    return Question(f"which is first , the {pair[0]} or the {pair[1]} ?", one if first else other, "first")


def events(rng: random.Random, frames: int) -> Drawn:
    """Draw a static shot in which one shape, or two, come and go one to four times; one stays.

    >>> drawn = events(random.Random(0), 8)
    >>> len(drawn[0]), drawn[1][0].text
    (8, 'how many times does the triangle appear ?')
    """
    ground, base = background(rng, CANVAS)
    shapes = _shapes(rng, base, 4)
    *stay, last = shapes[:3] if rng.random() < 0.5 else shapes
    blink = [last, *stay[2:]]
    stay = stay[:2]
    shown = [set(range(frames)) for _ in stay]
    asked = []
    for shape in blink:
        times = rng.randint(1, min(4, (frames + 1) // 2))
        cuts = sorted(rng.sample(range(frames + 1), 2 * times))
        shown.append({n for start, end in zip(cuts[::2], cuts[1::2]) for n in range(start, end)})
        asked.append(Question(f"how many times does the {shape.shape} appear ?", str(times), "times"))
    every = [*stay, *blink]
    made = _frames(ground, ([s for s, when in zip(every, shown) if n in when] for n in range(frames)))
    return made, (*asked, _detail(rng, stay[0]))


def change(rng: random.Random, frames: int) -> Drawn:
    """Draw a static shot: one shape changes its colour, another one appears or vanishes, at different moments.

    >>> drawn = change(random.Random(0), 8)
    >>> [q.skill for q in drawn[1]]
    ['change', 'change', 'change', 'detail']
    """
    ground, base = background(rng, CANVAS)
    turning, coming, *stay = _shapes(rng, base, rng.randint(3, 4))
    taken = {each.colour for each in (turning, coming, *stay)}
    turned = replace(turning, colour=rng.choice([name for name in _colours(base) if name not in taken]))
    when, moment = rng.randint(1, frames - 1), rng.randint(1, frames - 1)
    appears = rng.random() < 0.5
    shown = [
        [turning if n < when else turned, *([coming] if (n >= moment) == appears else []), *stay] for n in range(frames)
    ]
    gone = "first" if appears else "last"
    return _frames(ground, shown), (
        Question(f"what colour is the {turning.shape} in the first image ?", turning.colour, "change"),
        Question(f"what colour is the {turning.shape} in the last image ?", turned.colour, "change"),
        Question(f"what shape is not in the {gone} image ?", coming.shape, "change"),
        _detail(rng, stay[0]),
    )


def glimpse(rng: random.Random, frames: int) -> Drawn:
    """Draw a static shot in which a digit is shown in one frame.

    >>> drawn = glimpse(random.Random(0), 8)
    >>> len(set(map(id, drawn[0]))), [q.text for q in drawn[1]][:2]
    (2, ['what digit is present ?', 'where is the digit ?'])
    """
    ground, base = background(rng, CANVAS)
    shapes = _shapes(rng, base, rng.randint(3, 4))
    # The digit takes the place of the last one.
    *stay, last = shapes
    inks = [rgb for rgb in COLOURS.values() if contrast(rgb, base) > 90]
    digit = str(rng.randrange(10))
    still = _frames(ground, [stay])[0]
    flash = still.copy()
    _digit(flash, digit, last.centre, rng.randint(30, 40), rng.choice(inks))
    made = [still] * frames
    made[rng.randrange(frames)] = flash
    return made, (
        Question("what digit is present ?", digit, "glimpse"),
        Question("where is the digit ?", last.place, "glimpse"),
        _detail(rng, stay[0]),
    )


def camera(rng: random.Random, frames: int) -> Drawn:
    """Draw a camera that moves at an even pace over shapes: one is seen only at first, another only at last.

    >>> drawn = camera(random.Random(0), 8)
    >>> len(set(map(id, drawn[0]))), [q.skill for q in drawn[1]]
    (8, ['way', 'first', 'detail'])
    """
    way = rng.choice(list(WAYS))
    across, forward = WAYS[way][0] != 0, sum(WAYS[way]) > 0
    path = rng.uniform(100, 150)
    ground, base = background(rng, round(CANVAS + path))
    names, colours = rng.sample(SHAPES, 4), rng.sample(_colours(base), 4)
    beside = [38.0, 76.0, 114.0, 152.0]
    rng.shuffle(beside)
    # Places along the way: one leaves before the end, one comes after the start, two are seen in most frames.
    along = [
        rng.uniform(26, path - 40),
        rng.uniform(CANVAS + 40, CANVAS + path - 26),
        *(rng.uniform(path - 10, CANVAS + 10) for _ in range(2)),
    ]
    for name, colour, far, aside in zip(names, colours, along, beside, strict=True):
        far = far if forward else CANVAS + path - far
        centre = (far, aside) if across else (aside, far)
        draw_shape(ground, name, centre, rng.uniform(26, 38), COLOURS[colour], 0)
    made = []
    for number in range(frames):
        gone = number / (frames - 1)
        at = round(path * (gone if forward else 1 - gone))
        x, y = (at, 0) if across else (0, at)
        made.append(ground.crop((x, y, x + CANVAS, y + CANVAS)))
    asked = rng.randrange(4)
    return made, (
        Question("where does the camera move ?", way, "way"),
        _which_first(rng, names[0], names[1], True),
        Question(f"what colour is the {names[asked]} ?", colours[asked], "detail"),
    )


KINDS: Final[dict[str, Callable[[random.Random, int], Drawn]]] = {
    "lane": lane, "events": events, "change": change, "glimpse": glimpse, "camera": camera,
}  # fmt: skip
"""What draws each kind of clip, from random numbers and the number of frames."""
