"""Load the rows of a dataset with the `datasets` library: from the hub, from files in a folder, or as it saved them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, first_line
from foveate.files import is_file

__all__ = ["is_saved_dataset", "load_rows"]


def is_saved_dataset(folder: str | Path) -> bool:
    """Return whether a folder is one that `save_to_disk` wrote."""
    return any(is_file(Path(folder, name)) for name in ("state.json", "dataset_dict.json"))


def load_rows(name: str, subset: str = "", split: str = "", *, choose: str, otherwise: str) -> Any:
    """Return the rows of a dataset.

    Args:
        name: on the hub, or a folder.
        subset: one of its parts, "" for the only one.
        split: such as "test"; "" for the only one.
        choose: what errors call the option that names a split.
        otherwise: which extra of foveate has the library, and what to do without it, for the error.

    Raises:
        FoveateError: the library isn't there, the dataset can't be loaded or is empty, or it has no such split, or
            several and none is chosen.
    """
    try:
        import datasets
    except ImportError:
        raise FoveateError(f"datasets are read by the datasets package; {otherwise}") from None
    part = part_of(subset, split)
    try:
        if is_saved_dataset(name):
            loaded: Any = datasets.load_from_disk(name)
            if isinstance(loaded, dict):
                loaded = loaded[_split(list(loaded), split, name, choose)]
        else:
            if not split:
                split = _split(datasets.get_dataset_split_names(name, subset or None), split, name, choose)
            loaded = datasets.load_dataset(name, subset or None, split=split)
    except FoveateError:
        raise
    except Exception as error:  # The library, and those that it loads with, raise errors of every kind.
        # What the library says of data without a row, as files and as it saves them.
        if "no data" not in str(error) and not isinstance(error, IndexError):
            raise FoveateError(f"the dataset {name}{part} can't be loaded ({first_line(error)})") from error
        loaded = ()
    if not len(loaded):
        raise FoveateError(f"the dataset {name}{part} is empty; choose another split with {choose}")
    return loaded


def part_of(subset: str, split: str) -> str:
    """Return which part of a dataset is meant, for errors.

    >>> part_of("", "test"), part_of("", "")
    (' (split test)', '')
    """
    parts = [f"{what} {name}" for what, name in (("subset", subset), ("split", split)) if name]
    return f" ({', '.join(parts)})" if parts else ""


def _split(there: list[str], split: str, name: str, choose: str) -> str:
    if split in there:
        return split
    if split or len(there) != 1:
        has = f"has the splits {', '.join(there)}" if there else "has no split"
        raise FoveateError(f"{name} {has}{f' and no {split}' if split else ''}; choose one with {choose}")
    return there[0]
