"""What a visitor asks about: an example, a generated scene or clip, or a file of their own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image

from foveate.clips import Clip, is_clip, open_clip
from foveate.errors import FoveateError
from foveate.images import open_image
from foveate.scenes import CLIP_KINDS, KINDS, clip, scene

__all__ = ["EXAMPLES", "KIND_NAMES", "MOST_BYTES", "MOST_PIXELS", "UPLOAD", "Picture", "generated", "uploaded"]

MOST_BYTES: Final = 32 * 2**20
"""The largest file that a visitor may send."""
MOST_PIXELS: Final = 50_000_000
"""The most pixels of a picture, or of all frames that are taken of a clip."""
CLIP_FRAMES: Final = 8
UPLOAD: Final = "file"
"""The source of a picture that only its visitor has, so that no link leads to it."""

EXAMPLES: Final = {
    "shapes": "shapes-3",
    "crowd": "crowd-8",
    "words": "words-5",
    "list": "list-2",
    "chart": "chart-4",
    "tiny": "tiny-6",
    "clip": "clip-camera-3",
}
"""By name, the source of a picture that comes with the page."""
KIND_NAMES: Final = (*KINDS, *(f"clip-{kind}" for kind in CLIP_KINDS))


@dataclass(frozen=True)
class Picture:
    """A picture or clip with what can be asked about it; two are equal if they show the same.

    Attributes:
        key: knows it again.
        source: what a link calls it: kind and seed of the generator, or "file".
        title: for people.
        visual: the image, mode "RGB", or the clip.
        questions: texts that can be asked, with their answers; () for a file.
    """

    key: str
    source: str = field(compare=False)
    title: str = field(compare=False)
    visual: Image.Image | Clip = field(compare=False, repr=False)
    questions: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def is_clip(self) -> bool:
        """Whether it has frames."""
        return isinstance(self.visual, Clip)

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """The image, or the frames of the clip."""
        return self.visual.frames if isinstance(self.visual, Clip) else (self.visual,)


def generated(source: str) -> Picture:
    """Draw a scene or a clip, from its kind and its seed.

    >>> generated("chart-7").questions[0][0].endswith("?")
    True
    >>> len(generated("clip-events-1").frames)
    8

    Raises:
        FoveateError: the generator has no such kind, or the seed is no number.
    """
    found = re.fullmatch(r"(?P<clip>clip-)?(?P<kind>[a-z]+)-(?P<seed>[0-9]{1,12})", source)
    kinds = CLIP_KINDS if found is not None and found["clip"] else KINDS
    if found is None or (found["kind"] not in kinds and found["kind"] != "test"):
        raise FoveateError(
            f"no picture is called {source!r}; write a kind and a seed, such as shapes-3: there are "
            f"{', '.join(KIND_NAMES)}, and test-12 for one of the test set"
        )
    seed = int(found["seed"])
    if found["clip"]:
        made = clip(seed, split="test", frames=CLIP_FRAMES, kind=found["kind"])
        times = tuple(number + 0.5 for number in range(CLIP_FRAMES))
        visual: Image.Image | Clip = Clip(made.frames, times, float(CLIP_FRAMES), CLIP_FRAMES)
        title, questions = f"A generated clip, {found['kind']} {seed}", made.questions
    else:
        one = scene(seed, split="test", kind=None if found["kind"] == "test" else found["kind"])
        visual, questions = one.image, one.questions
        title = f"A generated scene, {one.kind} {seed}"
    asked = tuple(dict.fromkeys((each.text, each.answer) for each in questions))
    return Picture(source, source, title, visual, asked)


def uploaded(path: str | Path) -> Picture:
    """Open a file that a visitor sent, as `open_image` or `open_clip` does.

    Raises:
        FoveateError: it is no picture and no clip, is damaged, or is too large.
    """
    path = Path(path)
    visual: Image.Image | Clip = open_clip(path) if is_clip(path) else open_image(path, MOST_PIXELS)
    frames = visual.frames if isinstance(visual, Clip) else (visual,)
    if sum(frame.width * frame.height for frame in frames) > MOST_PIXELS:
        raise FoveateError(
            f"{path.name} is too large for this page: {len(frames)} frames of {frames[0].width:,} x "
            f"{frames[0].height:,} pixels, and the limit is {MOST_PIXELS:,} pixels; make it smaller first"
        )
    digest = hashlib.sha256(repr((visual.times if isinstance(visual, Clip) else (), frames[0].size)).encode())
    for frame in frames:
        digest.update(frame.tobytes())
    size = f"{frames[0].width} x {frames[0].height}"
    title = f"{path.name}, {len(frames)} frames of {size}" if len(frames) > 1 else f"{path.name}, {size}"
    return Picture(digest.hexdigest(), UPLOAD, title, visual)
