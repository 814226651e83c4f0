"""Lock a folder for one process, which the lock names to others; the system frees it when the process ends, however."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from foveate.files.paths import FileError, kind_of, shown_path, why
from foveate.files.reading import read_json
from foveate.files.writing import make_folder, remove_empty_folder, remove_file, write_json

LOCK: Final = ".lock"
OWNER: Final = ".owner.json"
"""The files in a locked folder: the lock, and who holds it."""

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What file systems without locks answer."""


class FolderInUse(FileError):
    """A folder that another process writes to."""


class FolderLock:
    """Lets one process at a time write to a folder.

    The lock is the system's own (`flock`), so none is left behind by a process that was killed. Where the file system
    has none, it is a file with the process's id, which counts as free once that process of this machine is gone.

    Args:
        folder: created if it is missing.
        advice: what another process is told to do.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with FolderLock(folder):
    ...     FolderLock(folder).acquire()
    Traceback (most recent call last):
    foveate.files.locking.FolderInUse: ... is in use by process ...
    >>> FolderLock(folder).acquire()
    """

    def __init__(self, folder: str | Path, advice: str = "wait for it, or name another folder") -> None:
        self.folder = Path(folder)
        self._advice = advice
        self._lock: Any = None
        self._made = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Lock the folder, and write who holds it.

        Raises:
            FolderInUse: another process holds it; the text names it.
            FileError: the folder can't be made or written to.
        """
        if self.held:
            return
        self._made = kind_of(self.folder) == "missing"
        make_folder(self.folder)
        from filelock import FileLock, SoftFileLock, Timeout

        try:
            try:
                self._lock = _taken(FileLock(self.folder / LOCK, timeout=0, thread_local=False))
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                    raise
                self._lock = _taken(SoftFileLock(self.folder / LOCK, timeout=0, thread_local=False))
        except Timeout:
            raise FolderInUse(f"{shown_path(self.folder)} is in use by {self._owner()}; {self._advice}") from None
        except OSError as error:
            raise FileError(f"{shown_path(self.folder)} can't be locked {why(error)}") from None
        try:
            write_json(
                self.folder / OWNER,
                {
                    "process": os.getpid(),
                    "machine": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                },
                indent=None,
            )
        except BaseException:
            self.release()
            raise

    def check_free(self) -> None:
        """Check that no other process holds the lock, without taking it: before work that takes long.

        Raises:
            FolderInUse: another process holds it; the text names it.
            FileError: the folder can't be written to.
        """
        if kind_of(self.folder / LOCK) != "missing" and not self.held:
            self.acquire()
            self.release()

    def _owner(self) -> str:
        """Say which process holds the lock, as far as that is known."""
        try:
            found = read_json(self.folder / OWNER)
            return f"process {found['process']} on {found['machine']}, since {found['since']}"
        except (FileError, KeyError, TypeError):
            # It was locked a moment ago.
            return "another process"

    def release(self) -> None:
        """Free the folder, and remove the lock's files."""
        if self._lock is None:
            return
        # Removed while the lock is held, so that no file of the next owner is.
        remove_file(self.folder / OWNER)
        remove_file(self.folder / LOCK)
        lock, self._lock = self._lock, None
        lock.release()
        if self._made:
            # Nothing was written to it.
            remove_empty_folder(self.folder)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _taken(lock: Any) -> Any:
    lock.acquire()
    return lock
