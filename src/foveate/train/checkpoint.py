"""Checkpoints without pickles: safetensors for whatever is a tensor, JSON for the rest, and whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS: Final = "trained.safetensors"
OPTIMISER: Final = "optimizer.safetensors"
SCHEDULER: Final = "scheduler.json"
SCALER: Final = "scaler.json"
WRITING: Final = ".writing"
"""The folder in which a checkpoint is written before it gets its name."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Each is whole: an unfinished one has no such name."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def publish(written: Path, final: Path, keep: int) -> None:
    """Give a written checkpoint its name, at once, and remove all but the last `keep`.

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
        # Renamed first: what a kill leaves of it is no checkpoint.
        old.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems know no such thing for folders
        pass
    finally:
        os.close(handle)


def write_json(value: Any, path: Path) -> None:
    """Write plain data, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Args:
        tensors: contiguous, and none shares its memory with another.
        path: of the file.
        metadata: texts for its header.
    """
    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, metadata=None if metadata is None else dict(metadata))
    partial.replace(path)


def save_optimiser(state: Mapping[str, Any], path: Path) -> None:
    """Write the `state_dict` of an optimiser.

    Args:
        state: `state`, per parameter its tensors and numbers, and `param_groups` of plain data.
        path: a safetensors file; what is no tensor goes into its header.
    """
    tensors: dict[str, Tensor] = {}
    plain: list[list[Any]] = []
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value.detach().contiguous().cpu()
            else:
                plain.append([parameter, name, value])
    header = json.dumps({"state": plain, "param_groups": state["param_groups"]})
    save_file(tensors, path, metadata={"optimizer": header})


def load_optimiser(path: Path) -> dict[str, Any]:
    """Read what `save_optimiser` wrote: a `state_dict`, its tensors on the CPU."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["optimizer"])
    state: dict[Any, dict[str, Any]] = {}
    for name, value in load_file(path).items():
        parameter, _, key = name.partition("/")
        state.setdefault(int(parameter), {})[key] = value
    for parameter, key, value in header["state"]:
        state.setdefault(int(parameter), {})[key] = value
    # JSON knows no tuples, and optimisers have theirs (betas) in tuples.
    groups = [
        {key: tuple(value) if key != "params" and isinstance(value, list) else value for key, value in group.items()}
        for group in header["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def save_random(path: Path) -> None:
    """Write the state of every generator of random numbers that training draws from."""
    numpy_state: Any = np.random.get_state()
    tensors = {"torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": each for i, each in enumerate(torch.cuda.random.get_rng_state_all())}
    plain = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
    }
    save_file(tensors, path, metadata={"random": json.dumps(plain)})


def load_random(path: Path) -> None:
    """Set every generator to what `save_random` wrote."""
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["random"])
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = plain["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    tensors = load_file(path)
    torch.random.set_rng_state(tensors["torch"])
    devices = sum(name.startswith("cuda") for name in tensors)
    if devices and torch.cuda.is_available() and torch.cuda.device_count() == devices:
        torch.cuda.random.set_rng_state_all([tensors[f"cuda{i}"] for i in range(devices)])
