"""The files of a checkpoint: each is written to another folder and renamed, so that it is whole or doesn't exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Final

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from foveate.errors import FoveateError
from foveate.files import (
    FileError,
    check_torch_file,
    files_in,
    is_file,
    is_folder,
    open_tensors,
    read_json_object,
    remove_folder,
    rename,
    replace_folder,
    shown_path,
)

WEIGHTS: Final = "trained.safetensors"
WRITING: Final = ".writing"
"""The folder in which a checkpoint is written before it gets its name."""
_NAME: Final = re.compile(r"checkpoint-[0-9]{1,18}")
_STATE: Final = {field.name for field in dataclasses.fields(TrainerState)}


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first. Each is complete: an unfinished one has another name."""
    if not is_folder(folder):
        return []
    found = [path for path in files_in(folder, "checkpoint-*") if _NAME.fullmatch(path.name) and is_folder(path)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def made_by(checkpoint: Path) -> dict[str, Any]:
    """Return the recipe that made a checkpoint.

    Raises:
        FoveateError: it is missing or damaged.
    """
    try:
        return read_json_object(checkpoint / "recipe.json", strict=False)
    except FileError as error:
        raise _damaged(checkpoint, str(error)) from None


def check_complete(checkpoint: Path) -> None:
    """Check that a checkpoint has all of its files, since transformers goes on without those that it doesn't find.

    Raises:
        FoveateError: one is missing; the text names it.
    """
    for name in (WEIGHTS, OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME):
        if not is_file(checkpoint / name):
            raise _damaged(checkpoint, f"it has no {name}")
    try:
        with open_tensors(checkpoint / WEIGHTS):
            pass
        # What was drawn at random, one file per process, may be missing.
        drawn = files_in(checkpoint, "rng_state*.pth")
        for file in (checkpoint / OPTIMIZER_NAME, checkpoint / SCHEDULER_NAME, *drawn):
            check_torch_file(file)
        state = read_json_object(checkpoint / TRAINER_STATE_NAME, strict=False)
    except FileError as error:
        raise _damaged(checkpoint, str(error)) from None
    if state.get("global_step") != _step(checkpoint) or state.keys() - _STATE:
        raise _damaged(checkpoint, f"{TRAINER_STATE_NAME} is of another step or another version of transformers")


def _damaged(checkpoint: Path, how: str) -> FoveateError:
    return FoveateError(
        f"{shown_path(checkpoint)} is damaged or from another version of foveate: {how}; remove it to go on from the "
        "one before, or name another --out"
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
    remove_folder(aside)
    for old in checkpoints(final.parent)[:-keep]:
        # Renamed first: a kill while it is removed leaves no damaged checkpoint.
        rename(old, aside)
        remove_folder(aside)
