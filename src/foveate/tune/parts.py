"""Part a task: images to search on, and images that are held out."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Final

from foveate.bench.statistics import FEWEST_IMAGES
from foveate.bench.tasks import Task
from foveate.errors import FoveateError
from foveate.numbers import SEED, check_real, check_whole
from foveate.tune.race import FEWEST

__all__ = ["Parts", "part_of", "parts_of", "questions_before", "same_part"]

_PART: Final = re.compile(r" with (\d+) questions in the order of seed (\d+)((?:, images \d+ to \d+)+)")
"""What the digest of a part says after that of the whole task."""


@dataclass(frozen=True)
class Parts:
    """The two parts of a task, both in an order drawn by the seed.

    Attributes:
        search: its images decide which spec is chosen.
        held_out: its images judge it; the search never asks about them.
    """

    search: Task
    held_out: Task


def parts_of(task: Task, held_out: float = 0.5, seed: int = 0) -> Parts:
    """Part a task by its images, so that all questions about an image are in one part.

    Args:
        task: all images and questions.
        held_out: the share of the images that is held out.
        seed: of the draw.

    Raises:
        FoveateError: the share is none, or a part would have too few images.

    >>> from foveate.bench import scenes
    >>> parts = parts_of(scenes(200))
    >>> len(parts.search.pictures), len(parts.held_out.pictures)
    (10, 10)
    """
    share = check_real("the held-out share", held_out)
    if not 0 < share < 1:
        raise FoveateError(
            f"the held-out share is {held_out:g}; give the share of the images that judge the choice, above 0 and "
            "below 1 (--held-out)"
        )
    seed = check_whole("seed", seed, SEED)
    images = len(task.pictures)
    count = round(share * images)
    for what, there, least in (("held out", count, FEWEST_IMAGES), ("to search on", images - count, FEWEST)):
        if there < least:
            raise FoveateError(
                f"{task.name} has {images} images, of which {there} would be {what}, and {least} are needed; give more "
                f"questions about other images, or another share than {share:g} (--held-out)"
            )
    drawn = _drawn(task, seed)
    return Parts(part_of(drawn, count), part_of(drawn, 0, count))


def _drawn(task: Task, seed: int) -> Task:
    """Return a task with its images in the order of a seed."""
    order = list(task.pictures)
    random.Random(seed).shuffle(order)
    digest = f"{task.digest} with {task.questions} questions in the order of seed {seed}"
    return replace(task, pictures=tuple(order), digest=digest)


def part_of(task: Task, begin: int, end: int | None = None) -> Task:
    """Return some images of a task, as a task.

    >>> from foveate.bench import scenes
    >>> [picture.name for picture in part_of(scenes(30), 1, 2).pictures]
    ['test-000001']
    """
    end = len(task.pictures) if end is None else end
    digest = f"{task.digest}, images {begin} to {end - 1}"
    return replace(task, pictures=task.pictures[begin:end], digest=digest, floor=None)


def questions_before(digest: str) -> int | None:
    """Return how many questions the whole task had of which a digest is that of a part; None if it isn't one.

    >>> from foveate.bench import scenes
    >>> questions_before(parts_of(scenes(200)).held_out.digest), questions_before(scenes(20).digest)
    (200, None)
    """
    found = _PART.search(digest)
    return None if found is None else int(found[1])


def same_part(task: Task, digest: str) -> Task:
    """Return the part of a task that has a digest; of another task, a part with another digest.

    Args:
        task: the whole task.
        digest: of a part.

    >>> from foveate.bench import scenes
    >>> part = part_of(parts_of(scenes(200)).search, 2, 5)
    >>> same_part(scenes(200), part.digest).digest == part.digest
    True
    """
    found = _PART.search(digest)
    assert found is not None
    made = _drawn(task, int(found[2]))
    for begin, end in re.findall(r"images (\d+) to (\d+)", found[3]):
        made = part_of(made, int(begin), int(end) + 1)
    return made
