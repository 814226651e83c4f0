"""Write files and folders atomically: under a temporary name on the same disk first, then renamed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from foveate.errors import FoveateError

__all__ = [
    "PARTIAL",
    "atomic_file",
    "atomic_files",
    "flush",
    "replace_folder",
    "write_json",
    "write_tensors",
    "write_text",
]

PARTIAL: Final = ".partial"
"""The end of temporary names."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`; it replaces `path` when the block ends.

    The folder of `path` is created if it is missing. After an error, `path` is what it was and the temporary file is
    gone. The file is on the disk when the block has ended, with the usual access rights of this user's files.

    Args:
        path: of the file. The temporary name begins with "." and ends with `PARTIAL`.

    Raises:
        FoveateError: the file can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(f"{folder}/notes.txt") as partial:
    ...         _ = partial.write_text("done")
    ...     [file.name for file in Path(folder).iterdir()]
    ['notes.txt']
    """
    from safetensors import SafetensorError

    path = Path(path)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        # safetensors creates files that only their owner can read.
        partial.chmod(mode)
        flush(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Raises:
        FoveateError: it can't be written.
    """
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write plain data as JSON with a newline at its end, atomically.

    Args:
        path: of the file.
        value: plain data.
        indent: blanks per level; None for one line.

    Raises:
        FoveateError: it can't be written.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        path: of the file.
        tensors: contiguous, and none shares its memory with another.
        metadata: texts for the file's header.

    Raises:
        FoveateError: it can't be written.
    """
    from safetensors.torch import save_file

    with atomic_file(path) as partial:
        save_file(dict(tensors), partial, metadata=None if metadata is None else dict(metadata))


@contextmanager
def atomic_files(directory: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a new folder to write into; its files move to `directory` together when the block ends.

    Other files in `directory` stay. After an error, `directory` is what it was.

    Args:
        directory: created if it is missing, with its parents.
        names: the files and folders that may be written. The last one is always written, and marks the set as complete:
            it is removed first and put in place last.

    Raises:
        FoveateError: the directory can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_files(f"{folder}/adapter", ["settings.json"]) as new:
    ...         _ = (new / "settings.json").write_text("{}")
    ...     [str(path.relative_to(folder)) for path in Path(folder).glob("*/*")]
    ['adapter/settings.json']
    """
    from safetensors import SafetensorError

    final = Path(directory)
    if final.exists() and not final.is_dir():
        raise FoveateError(f"{directory} can't be written: it is a file; name another folder")
    created = not final.exists()
    new = None
    try:
        final.mkdir(parents=True, exist_ok=True)
        # Inside `directory`, so that both are on one disk even where `directory` is a mount point.
        new = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=final))
        yield new
        # safetensors creates files that only their owner can read; the last file has this user's usual mode.
        mode = (new / names[-1]).stat().st_mode
        for path in new.rglob("*.safetensors"):
            path.chmod(mode)
        _move(new, final, names)
        created = False
    except (OSError, SafetensorError) as error:
        # A full disk can be either.
        raise _not_written(directory, error) from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        if created:
            with suppress(OSError):
                final.rmdir()


def _move(new: Path, final: Path, names: Sequence[str]) -> None:
    """Move new files to `final` and old ones out of the way; after an error, move everything back."""
    old = new / ".old"
    old.mkdir()
    # If the last file is there, all files of these names belong to an older set; else only those in the way go.
    replaces_set = (final / names[-1]).exists()
    removed: list[str] = []
    placed: list[str] = []
    try:
        for name in reversed(names):
            if (final / name).exists() and (replaces_set or (new / name).exists()):
                (final / name).replace(old / name)
                removed.append(name)
        for name in names:
            if (new / name).exists():
                (new / name).replace(final / name)
                placed.append(name)
    except OSError:
        for name in placed:
            (final / name).replace(new / name)
        for name in reversed(removed):
            (old / name).replace(final / name)
        raise


def replace_folder(written: Path, final: Path) -> None:
    """Flush a finished folder to the disk and rename it to `final`; an older `final` is removed.

    Args:
        written: the finished folder, on the same disk as `final`.
        final: its name from now on.

    Raises:
        OSError: it can't be renamed.
    """
    for path in [*written.rglob("*"), written]:
        flush(path)
    old = written.with_name(f"{written.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    written.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    # Some file systems can't flush folders.
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _not_written(path: str | Path, error: Exception) -> FoveateError:
    return FoveateError(f"{path} can't be written ({getattr(error, 'strerror', None) or error})")
