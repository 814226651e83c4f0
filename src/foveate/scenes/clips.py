"""Make clips: a few frames in which a digit moves and shapes come and go, and questions that their order answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from PIL import Image

from foveate.errors import FoveateError
from foveate.numbers import Between, check_whole
from foveate.scenes.compose import CANVAS
from foveate.scenes.draw import background, contrast, draw_shape, draw_text, text_size
from foveate.scenes.generate import Split
from foveate.scenes.questions import Question
from foveate.scenes.vocabulary import COLOURS, SHAPES

WAYS: Final[dict[str, tuple[int, int]]] = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
"""Where a digit moves to, as steps in x and y."""

CLIP_SKILLS: Final[tuple[str, ...]] = ("way", "first", "often")
"""What a question about a clip asks for. The first two need the order of the frames, the last doesn't."""

_LANE: Final = 48
"""The middle of the band that the digit moves in, in pixels from the top or from the left."""


@dataclass(frozen=True)
class Clip:
    """Some frames with what is asked about them."""

    id: str
    """``train-clip-000012`` or ``test-clip-000012``: the split and the seed."""
    frames: tuple[Image.Image, ...]
    """Each 192 x 192, RGB."""
    questions: tuple[Question, ...]

    def shuffled(self, seed: int = 0) -> Clip:
        """The same frames in another order with the same questions: a control, in which ways and firsts are lost.

        >>> one = clip(3)
        >>> sorted(map(id, one.shuffled().frames)) == sorted(map(id, one.frames)), one.shuffled().frames != one.frames
        (True, True)
        """
        rng = random.Random(f"shuffled {seed} {self.id}")
        order = list(self.frames)
        while order == list(self.frames):
            rng.shuffle(order)
        return Clip(f"{self.id}-shuffled", tuple(order), self.questions)


def clip(seed: int, *, split: Split = "train", frames: int = 4) -> Clip:
    """Make the clip of a seed; the two splits never share a random stream.

    A digit moves at an even pace; two shapes are shown once each, in different frames; a third one is shown in some.

    Args:
        seed: any whole number from 0.
        split: "train" or "test".
        frames: how many, from 2 on.

    Raises:
        FoveateError: for a seed that is no whole number from 0, or fewer than 2 frames.

    >>> one = clip(7)
    >>> len(one.frames), [q.skill for q in one.questions], clip(7).questions == one.questions
    (4, ['way', 'first', 'often'], True)
    """
    check_whole("seed", seed, Between(0, 2**63 - 1))
    if check_whole("frames", frames, Between(0, 1000)) < 2:
        raise FoveateError(f"a clip has 2 frames or more, not {frames}")
    rng = random.Random(f"foveate clips {split} {seed}")
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
    ink, lane, size = rng.choice(inks), _LANE + rng.uniform(-14, 14), rng.randint(30, 40)
    made: list[Image.Image] = []
    for number in range(frames):
        picture = ground.copy()
        for shape, along, beside, side, rgb in drawn:
            if number in shown[shape]:
                draw_shape(picture, shape, (along, beside) if across else (beside, along), side, rgb, 0)
        gone = number / (frames - 1)
        at = 30 + (CANVAS - 60) * (gone if sum(WAYS[way]) > 0 else 1 - gone)
        width, height = text_size(digit, "DejaVuSans-Bold", size)
        x, y = (at, lane) if across else (lane, at)
        draw_text(picture, digit, (round(x - width / 2), round(y - height / 2)), "DejaVuSans-Bold", size, ink)
        made.append(picture)
    pair = [one, other]
    rng.shuffle(pair)
    questions = (
        Question(f"where does the {digit} move ?", way, "way"),
        Question(f"which is first , the {pair[0]} or the {pair[1]} ?", one if first < second else other, "first"),
        Question(f"how many images contain the {some} ?", str(len(shown[some])), "often"),
    )
    return Clip(f"{split}-clip-{seed:06d}", tuple(made), questions)
