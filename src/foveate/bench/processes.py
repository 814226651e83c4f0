"""Share a benchmark among processes, such as those of `accelerate launch`, one to a GPU.

Each process measures whole chunks of images in a results folder of its own, which continues after an interruption
like any other. The first process puts them together: every batch is one that a single process would have made, so the
answers and the table are the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from foveate.errors import FoveateError
from foveate.files import is_file

__all__ = ["Place", "chunks_of", "share_folder", "this_place", "wait_for"]

_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Place:
    """Which of several processes this is.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


def this_place() -> Place:
    """Return which process this is, by the environment that `accelerate launch` and `torchrun` set.

    Raises:
        FoveateError: the environment holds something else.

    >>> this_place()
    Place(rank=0, world=1, local=0)
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = [os.environ.get(name, default) for name, default in zip(names, ("0", "1", "0"), strict=True)]
    if not all(each.isdigit() for each in found) or int(found[0]) >= int(found[1]):
        told = ", ".join(f"{name}={value}" for name, value in zip(names, found, strict=True))
        raise FoveateError(f"the environment has {told}, which is no process of several; start it by accelerate launch")
    return Place(*map(int, found))


def chunks_of(place: Place, chunks: int) -> Sequence[int]:
    """Return the numbers of the chunks that a process measures.

    >>> list(chunks_of(Place(1, 2), 5))
    [1, 3]
    """
    return range(place.rank, chunks, place.world)


def share_folder(path: Path, place: Place) -> Path:
    """Return the results folder of one process, beside that of all.

    >>> share_folder(Path("results/mine"), Place(1, 2)).name
    'mine.share-1-of-2'
    """
    return path.with_name(f"{path.name}.share-{place.rank}-of-{place.world}")


def wait_for(folders: Sequence[Path]) -> None:
    """Wait until all processes have finished their results folders."""
    while not all(is_file(each / "metrics.json") for each in folders):
        time.sleep(_SECONDS)


def places(world: int) -> list[Place]:
    """Return all processes.

    >>> len(places(3))
    3
    """
    return [replace(Place(), rank=rank, world=world) for rank in range(world)]
