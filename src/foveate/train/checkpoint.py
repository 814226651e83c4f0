"""The files of a checkpoint: each is written to another folder and renamed, so that it is whole or doesn't exist."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from foveate.errors import FoveateError
from foveate.files import replace_folder

WEIGHTS: Final = "trained.safetensors"
WRITING: Final = ".writing"
"""The folder in which a checkpoint is written before it gets its name."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first. Each is complete: an unfinished one has another name."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def check_complete(checkpoint: Path) -> None:
    """Check that a checkpoint has all of its files, since transformers goes on without those that it doesn't find.

    Raises:
        FoveateError: one is missing; the text names it.
    """
    for name in (WEIGHTS, OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME):
        if not (checkpoint / name).is_file():
            raise FoveateError(
                f"{checkpoint} has no {name}, so it is damaged or from another version of foveate; remove it to go on "
                "from the checkpoint before, or name another --out"
            )


def publish(written: Path, final: Path, keep: int) -> None:
    """Flush a written checkpoint, give it its name, and remove all but the last `keep`.

    Args:
        written: a folder on the same disk as `final`.
        final: the name, `checkpoint-<step>`.
        keep: how many checkpoints stay.
    """
    replace_folder(written, final)
    aside = written.parent / "old"
    shutil.rmtree(aside, ignore_errors=True)
    for old in checkpoints(final.parent)[:-keep]:
        # Renamed first: a kill while it is removed leaves no damaged checkpoint.
        old.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
