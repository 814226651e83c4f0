"""Make clips: frames in which things move, come and go, and questions about them with one right answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from PIL import Image

from foveate.errors import FoveateError
from foveate.numbers import Between, check_whole
from foveate.scenes.clip_kinds import KINDS
from foveate.scenes.generate import Split
from foveate.scenes.questions import Question

CLIP_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "lane": ("way", "first", "often"),
    "events": ("times", "detail"),
    "change": ("change", "detail"),
    "glimpse": ("glimpse", "detail"),
    "camera": ("way", "first", "detail"),
}
"""The kinds of clips and the skills that each asks for."""

CLIP_SKILLS: Final[tuple[str, ...]] = ("way", "first", "often", "times", "change", "glimpse", "detail")
"""What a question about a clip asks for.

`way` (where does something move?), `first` (which of two comes first?), `times` (how many times does it appear?) and
`change` (what was before, what is at the end?) need the order of the frames; `often` (in how many frames?), `glimpse`
(what is shown in a single frame?) and `detail` (what a picture of the scene tells) don't.
"""


@dataclass(frozen=True)
class Clip:
    """Some frames with what is asked about them."""

    id: str
    """``train-clip-000012`` or ``test-clip-000012``: the split and the seed; the kind, unless it is "lane"."""
    frames: tuple[Image.Image, ...]
    """Each 192 x 192, RGB. A frame in which nothing changes is the same object as the one before."""
    questions: tuple[Question, ...]

    def shuffled(self, seed: int = 0) -> Clip:
        """The same frames in another order with the same questions: a control, in which ways and firsts are lost.

        A clip whose frames are all the same stays as it is.

        >>> one = clip(3)
        >>> sorted(map(id, one.shuffled().frames)) == sorted(map(id, one.frames)), one.shuffled().frames != one.frames
        (True, True)
        """
        rng = random.Random(f"shuffled {seed} {self.id}")
        order = list(self.frames)
        while order == list(self.frames) and len(set(map(id, order))) > 1:
            rng.shuffle(order)
        return Clip(f"{self.id}-shuffled", tuple(order), self.questions)


def clip(seed: int, *, split: Split = "train", frames: int = 4, kind: str = "lane") -> Clip:
    """Make the clip of a seed; the two splits never share a random stream.

    Args:
        seed: any whole number from 0.
        split: "train" or "test".
        frames: how many, from 2 on.
        kind: lane (a digit moves; shapes are shown in one frame or in some), events (a static shot in which shapes
            come and go), change (a static shot with two changes), glimpse (a static shot with a digit in a single
            frame) or camera (a camera moves over shapes).

    Raises:
        FoveateError: for a seed that is no whole number from 0, fewer than 2 frames, or an unknown kind.

    >>> one = clip(7)
    >>> len(one.frames), [q.skill for q in one.questions], clip(7).questions == one.questions
    (4, ['way', 'first', 'often'], True)
    """
    check_whole("seed", seed, Between(0, 2**63 - 1))
    if check_whole("frames", frames, Between(0, 1000)) < 2:
        raise FoveateError(f"a clip has 2 frames or more, not {frames}")
    if kind not in KINDS:
        raise FoveateError(f"no clips of kind {kind!r}; there are {', '.join(KINDS)}")
    named = "" if kind == "lane" else f"{kind} "
    made, questions = KINDS[kind](random.Random(f"foveate clips {named}{split} {seed}"), frames)
    return Clip(f"{split}-{named.strip()}{'-' if named else ''}clip-{seed:06d}", tuple(made), questions)
