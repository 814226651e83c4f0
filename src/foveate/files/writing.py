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
from typing import TYPE_CHECKING, Any, Final

from foveate.files.paths import FileError, checked_path, kind_of, real_path, shown_path, why

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL: Final = ".partial"
"""The end of temporary names."""
_TORCH_CAN_NOT_WRITE: Final = ("PytorchStreamWriter", "unexpected pos", "inline_container")
"""Words in the RuntimeErrors of `torch.save` when a file can't be written."""
_ERRORS: Final = "backslashreplace"
"""How halves of surrogate pairs are written, which names of files may hold: as JSON writes them."""


@contextmanager
def others_write(path: str | Path) -> Iterator[None]:
    """Turn what other libraries raise when they can't write to a path into our error, inside the block.

    Raises:
        FileError: the system refuses: the disk is full, or the folder is gone.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in _TORCH_CAN_NOT_WRITE):
            raise
        raise _not_written(path, error) from error


def _not_written(path: str | Path, error: BaseException) -> FileError:
    return FileError(f"{shown_path(path)} can't be written {why(error)}")


# Folders


def make_folder(path: str | Path) -> Path:
    """Make a folder with its parents, if it is missing.

    Raises:
        FileError: it can't be made, or is a file.
    """
    folder = checked_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder {shown_path(path)} can't be made {why(error)}") from None
    return folder


def copy_folder(path: Path, new: Path) -> None:
    """Copy a folder with all that is in it.

    Raises:
        FileError: it can't be read, or the copy can't be written.
    """
    try:
        shutil.copytree(path, new)
    except (OSError, shutil.Error) as error:
        raise _not_written(new, error) from error


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, as far as the system lets us; a missing one is fine."""
    shutil.rmtree(path, ignore_errors=True)


def remove_empty_folder(path: Path) -> None:
    """Remove a folder that holds nothing, if the system lets us; another one stays."""
    with suppress(OSError):
        path.rmdir()


def remove_file(path: Path) -> None:
    """Remove a file, if the system lets us; a missing one is fine."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def touch(path: Path) -> None:
    """Mark a file as used now, if the system lets us."""
    with suppress(OSError):
        os.utime(path)


def rename(path: Path, new: Path) -> None:
    """Rename a file or folder.

    Raises:
        FileError: it can't be renamed.
    """
    try:
        path.rename(new)
    except OSError as error:
        raise FileError(f"{shown_path(path)} can't be renamed to {shown_path(new)} {why(error)}") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the system's temporary files; it is removed when the block ends.

    Raises:
        FileError: there is no place for it.
    """
    try:
        folder = tempfile.mkdtemp(prefix="foveate-")
    except OSError as error:
        raise FileError(f"no temporary folder can be made {why(error)}; TMPDIR names another place") from None
    try:
        yield Path(folder)
    finally:
        remove_folder(Path(folder))


# Checks before work that takes long


def check_writable_file(path: str | Path) -> Path:
    """Check that a file can be written, before work that takes long; its folder may be missing.

    Returns:
        Where it is written: a link leads to its file.

    Raises:
        FileError: it can't be written; the text says why.
    """
    kind = kind_of(path)
    if kind == "folder":
        raise FileError(f"{shown_path(path)} is a folder; name a file in it")
    if kind == "other":
        raise FileError(f"{shown_path(path)} is a pipe or a device; name a file")
    final = real_path(path)
    if kind == "file" and not os.access(final, os.W_OK):
        raise FileError(f"{shown_path(path)} can't be written (it is read-only); name another file")
    _check_parents(path, final)
    return final


def check_writable_folder(path: str | Path) -> Path:
    """Check that a folder can be made, or written to if it exists, before work that takes long.

    Returns:
        Where it is: a link leads to its folder.

    Raises:
        FileError: it can't be made or written to; the text says why.
    """
    kind = kind_of(path)
    if kind in ("file", "other"):
        raise FileError(f"{shown_path(path)} can't be written: it is a file; name another folder")
    final = real_path(path)
    if kind == "folder" and not os.access(final, os.W_OK | os.X_OK):
        raise FileError(f"the folder {shown_path(path)} can't be written to; check its access rights, or name another")
    _check_parents(path, final)
    return final


def check_new_folder(path: str | Path) -> Path:
    """Check that a folder which is written under another name can get this one at the end.

    Returns:
        The path as it was given; if it is a link or ends with "..", the folder that it leads to.

    Raises:
        FileError: it is a file, the current folder or the system's, or its parent can't be written to.
    """
    given = checked_path(path)
    final = check_writable_folder(given)
    if kind_of(final) == "folder" and (final == real_path(".") or final.is_mount()):
        what = "the root of a disk" if final.is_mount() else "the current folder"
        raise FileError(f"{shown_path(path)} is {what}, which can't be replaced; name a new folder")
    if kind_of(final) != "missing":
        _check_parents(path, final)
    return final if given.is_symlink() or given.name in ("", "..") else given


def _check_parents(path: str | Path, final: Path) -> None:
    """Check the nearest folder above that exists: the missing ones are made in it."""
    for parent in final.parents:
        kind = kind_of(parent)
        if kind == "missing":
            continue
        if kind != "folder":
            raise FileError(f"{shown_path(path)} can't be written: {shown_path(parent)} is a file; name another place")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise FileError(
                f"{shown_path(path)} can't be written: nothing may be written to {shown_path(parent)}; check its "
                "access rights, or name another place"
            )
        try:
            # Some folders only look as if they could be written: /proc, and those of disks that are read-only.
            tempfile.TemporaryFile(dir=parent).close()
        except OSError as error:
            raise _not_written(path, error) from None
        return


# Files


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`; it replaces `path` when the block ends.

    The folder of `path` is created if it is missing. After an error, `path` is what it was and the temporary file is
    gone. The file is on the disk when the block has ended, with the usual access rights of this user's files.

    Args:
        path: of the file; if it is a link, the file that it leads to is replaced. The temporary name begins with "."
            and ends with `PARTIAL`.

    Raises:
        FileError: the file can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(f"{folder}/notes.txt") as partial:
    ...         _ = partial.write_text("done")
    ...     [file.name for file in Path(folder).iterdir()]
    ['notes.txt']
    """
    from safetensors import SafetensorError

    final = check_writable_file(path)
    make_folder(final.parent)
    # The whole name and the rest could be longer than names may be.
    partial = final.with_name(f".{os.fsdecode(os.fsencode(final.name)[:64])}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        # safetensors creates files that only their owner can read.
        partial.chmod(mode)
        flush(partial)
        partial.replace(final)
        flush(final.parent)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        remove_file(partial)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Halves of surrogate pairs, as in names of files that aren't UTF-8, are written as JSON writes them: "\\udcff".

    Raises:
        FileError: it can't be written.
    """
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=_ERRORS, newline="\n")


def append_text(path: str | Path, text: str) -> None:
    """Add text to a file, and wait until it is on the disk; after an error the file is what it was.

    Raises:
        FileError: it can't be written.
    """
    checked = check_writable_file(path)
    try:
        with checked.open("ab", buffering=0) as file:
            size, rest = file.tell(), text.encode("utf-8", _ERRORS)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                # Half a line would damage the next one.
                with suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise _not_written(path, error) from error


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write plain data as JSON with a newline at its end, atomically.

    Args:
        path: of the file.
        value: plain data.
        indent: blanks per level; None for one line.

    Raises:
        FileError: it can't be written.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        path: of the file.
        tensors: contiguous, and none shares its memory with another.
        metadata: texts for the file's header.

    Raises:
        FileError: it can't be written.
    """
    from safetensors.torch import save_file

    with atomic_file(path) as partial:
        save_file(dict(tensors), partial, metadata=None if metadata is None else dict(metadata))


def write_torch_file(path: str | Path, state: Any) -> None:
    """Write the state of an optimiser or a schedule as transformers does, atomically: its own code reads such files.

    Args:
        path: of the file.
        state: what `state_dict` of the optimiser or the schedule returns.

    Raises:
        FileError: it can't be written.
    """
    import torch

    with atomic_file(path) as partial, others_write(path):
        torch.save(state, partial)


# Several files together


@contextmanager
def atomic_files(directory: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a new folder to write into; its files move to `directory` together when the block ends.

    Other files in `directory` stay. After an error, `directory` is what it was.

    Args:
        directory: created if it is missing, with its parents.
        names: the files and folders that may be written. The last one is always written, and marks the set as complete:
            it is removed first and put in place last.

    Raises:
        FileError: the directory can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_files(f"{folder}/adapter", ["settings.json"]) as new:
    ...         _ = (new / "settings.json").write_text("{}")
    ...     [str(path.relative_to(folder)) for path in Path(folder).glob("*/*")]
    ['adapter/settings.json']
    """
    from safetensors import SafetensorError

    final = check_writable_folder(directory)
    created = kind_of(final) == "missing"
    new = None
    try:
        make_folder(final)
        # Inside `directory`, so that both are on one disk even where `directory` is a mount point.
        new = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=final))
        yield new
        # safetensors creates files that only their owner can read; the last file has this user's usual mode.
        mode = (new / names[-1]).stat().st_mode
        for path in new.rglob("*.safetensors"):
            path.chmod(mode)
        for path in new.rglob("*"):
            flush(path)
        _move(new, final, names)
        flush(final)
        created = False
    except (OSError, SafetensorError) as error:
        # A full disk can be either.
        raise _not_written(directory, error) from error
    finally:
        if new is not None:
            remove_folder(new)
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
        FileError: it can't be renamed.
    """
    old = written.with_name(f"{written.name}.old")
    try:
        for path in [*written.rglob("*"), written]:
            flush(path)
        remove_folder(old)
        if final.exists():
            final.rename(old)
        written.rename(final)
        flush(final.parent)
    except OSError as error:
        raise _not_written(final, error) from error
    remove_folder(old)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Raises:
        OSError: it can't be opened.
    """
    # Windows opens no folders.
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some file systems can't flush folders.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
