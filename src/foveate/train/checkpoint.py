"""The files of a checkpoint: each is written to another folder and renamed, so that it is whole or doesn't exist."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from foveate.errors import FoveateError

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
    for path in [*written.rglob("*"), written]:
        _flush(path)
    aside = written.parent / "old"
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    written.rename(final)
    _flush(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
    for old in checkpoints(final.parent)[:-keep]:
        # Renamed first: a kill while it is removed leaves no damaged checkpoint.
        old.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems can't flush folders
        pass
    finally:
        os.close(handle)


def write_json(value: Any, path: Path) -> None:
    """Write plain data as JSON, atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        tensors: contiguous, and none shares its memory with another.
        path: of the file.
        metadata: texts for its header.
    """
    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, metadata=None if metadata is None else dict(metadata))
    partial.replace(path)
