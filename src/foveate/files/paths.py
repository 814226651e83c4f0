"""Say what stands at a path, and put the system's errors about files into one line."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from foveate.errors import FoveateError, shown

Kind = Literal["missing", "file", "folder", "other"]
"""What stands at a path. "other" is a pipe, a device or a socket."""

_SHOWN: Final = 160
"""The most characters of a path that an error text shows."""

_ADVICE: Final = {
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "its links lead in a circle: name the file or folder itself",
    errno.EACCES: "check the access rights, or name another place",
    errno.EPERM: "check the access rights, or name another place",
    errno.EROFS: "name a place on a disk that can be written",
    errno.ENOSPC: "make room on that disk, or name another place",
    errno.EDQUOT: "make room in your quota, or name another place",
    errno.EFBIG: "files may not get that large here: raise the limit (ulimit -f), or name another place",
    errno.ENOENT: "make its folder first, or name another place",
    errno.ENOTDIR: "a part of the path is a file: name another place",
    errno.EEXIST: "a part of the path is a file: name another place",
    errno.EISDIR: "it is a folder: name a file",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EIO: "the disk failed: name another place",
}


class FileError(FoveateError):
    """A file or folder that can't be found, read, written or locked."""


class MissingFile(FileError):
    """A file or folder that doesn't exist."""


class DamagedFile(FileError):
    """A file whose content isn't what it should be."""


def shown_path(path: str | Path) -> str:
    """Return a path for an error text: one line that any terminal can print; of a very long one, both ends.

    >>> shown_path("two\\nlines"), len(shown_path("a" * 5000))
    ('two\\\\nlines', 163)
    """
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def why(error: BaseException) -> str:
    """Return the system's reason for an error and what to do about it, without the path.

    >>> why(OSError(errno.ENOSPC, "No space left on device"))
    '(No space left on device); make room on that disk, or name another place'
    """
    reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
    number = getattr(error, "errno", None)
    if number is None:
        # safetensors and torch give a number only in their text.
        number = next((known for known in _ADVICE if f"os error {known})" in reason), None)
    advice = _ADVICE.get(number) if number is not None else None
    return f"({reason.rstrip('.')})" + (f"; {advice}" if advice else "")


def checked_path(path: str | Path) -> Path:
    """Return a path that the system can be asked about.

    Raises:
        FileError: it is empty, holds a NUL character, or can't be encoded.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FileError(f"a file or folder is named by its path, not by {shown(path)}")
    if not text:
        raise FileError("the path is empty; name a file or folder")
    if "\0" in text:
        raise FileError(f"the path {shown_path(text)} holds a NUL character; name a file or folder")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise FileError(f"the path {shown_path(text)} holds half of a surrogate pair; name another") from None
    return Path(text)


def kind_of(path: str | Path) -> Kind:
    """Return what stands at a path; links are followed.

    Raises:
        FileError: the system can't tell: the name is too long, a folder can't be searched, or links lead in a circle.

    >>> kind_of("/"), kind_of("/no/such/file")
    ('folder', 'missing')
    """
    status = _status(path)
    if status is None:
        return "missing"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    return "file" if stat.S_ISREG(status.st_mode) else "other"


def _status(path: str | Path) -> os.stat_result | None:
    """Return what the system says of a path, None if nothing stands there; see `kind_of` for the errors."""
    checked = checked_path(path)
    try:
        return checked.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError(f"{shown_path(path)} can't be reached {why(error)}") from None


def is_file(path: str | Path) -> bool:
    """Return whether a regular file stands at a path; see `kind_of` for the errors."""
    return kind_of(path) == "file"


def is_folder(path: str | Path) -> bool:
    """Return whether a folder stands at a path; see `kind_of` for the errors."""
    return kind_of(path) == "folder"


@dataclass(frozen=True, order=True)
class FileFacts:
    """What the system knows of a file.

    Attributes:
        modified: when it was last modified, in nanoseconds since 1970.
        path: where it is.
        size: in bytes.
    """

    modified: int
    path: Path
    size: int


def facts_of_file(path: str | Path) -> FileFacts:
    """Return the facts of a regular file, without opening it; links are followed.

    Raises:
        MissingFile: none stands there.
        FileError: the system can't tell; see `kind_of`.
    """
    status = _status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise MissingFile(f"there is no file {shown_path(path)}")
    return FileFacts(status.st_mtime_ns, Path(path), status.st_size)


def facts_of_files(folder: str | Path, pattern: str) -> list[FileFacts]:
    """Return the files in a folder whose names match, the oldest first; one that another process deletes is left out.

    Raises:
        FileError: the folder can't be read.
    """
    found: list[FileFacts] = []
    for path in files_in(folder, pattern):
        with suppress(OSError):
            status = path.stat()
            found.append(FileFacts(status.st_mtime_ns, path, status.st_size))
    return sorted(found)


def modified(path: str | Path) -> int:
    """Return when a file was last modified, in nanoseconds.

    Raises:
        MissingFile: there is none.
        FileError: the system can't tell.
    """
    status = _status(path)
    if status is None:
        raise MissingFile(f"there is no file {shown_path(path)}")
    return status.st_mtime_ns


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links, whether or not something stands there.

    Raises:
        FileError: the current folder was removed, or the path is empty or holds a NUL character.
    """
    checked = checked_path(path)
    try:
        return Path(os.path.realpath(checked))
    except OSError as error:
        raise FileError(
            f"{shown_path(path)} can't be reached {why(error)}: the current folder is gone; change to another one"
        ) from None


def files_in(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Return the files and folders in a folder whose names match, sorted.

    Raises:
        FileError: the folder can't be read.
    """
    try:
        # glob would be silent about a folder that can't be read.
        found = list(checked_path(folder).iterdir())
    except FileNotFoundError:
        raise MissingFile(f"there is no folder {shown_path(folder)}") from None
    except OSError as error:
        raise FileError(f"the folder {shown_path(folder)} can't be read {why(error)}") from None
    return sorted(path for path in found if path.match(pattern))
