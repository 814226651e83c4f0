"""Part a task: images to search on, and images that are held out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from foveate.bench.statistics import FEWEST_IMAGES
from foveate.bench.tasks import Task
from foveate.errors import FoveateError
from foveate.numbers import SEED, check_real, check_whole
from foveate.tune.race import FEWEST

__all__ = ["Parts", "part_of", "parts_of"]

_LEAST: Final = 0.01


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
    order = list(task.pictures)
    random.Random(seed).shuffle(order)
    drawn = replace(task, pictures=tuple(order), digest=f"{task.digest} in the order of seed {seed}")
    return Parts(part_of(drawn, count), part_of(drawn, 0, count))


def part_of(task: Task, begin: int, end: int | None = None) -> Task:
    """Return some images of a task, as a task.

    >>> from foveate.bench import scenes
    >>> [picture.name for picture in part_of(scenes(30), 1, 2).pictures]
    ['test-000001']
    """
    end = len(task.pictures) if end is None else end
    digest = f"{task.digest}, images {begin} to {end - 1}"
    return replace(task, pictures=task.pictures[begin:end], digest=digest, floor=None)
