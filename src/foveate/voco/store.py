"""Memories on disk, found by what they were made from: the second question on a known image reads no pixels."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.errors import FoveateError
from foveate.voco.memory import VoCoMemory

_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600


class MemoryStore:
    """A folder of memories, bounded in size; the ones that were not used for longest go first.

    Safe under several processes: a memory is written to a name of its own and renamed, a file that another process took
    away in between counts as not there, and a damaged one is thrown out and made anew.

    Args:
        directory: made if it is missing.
        max_bytes: how much it may hold.

    Raises:
        FoveateError: the folder can't be used.

    >>> import tempfile
    >>> store = MemoryStore(tempfile.mkdtemp(), max_bytes=10_000_000)
    >>> len(store)
    0
    """

    def __init__(self, directory: str | Path, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise FoveateError(f"a store of {max_bytes} bytes holds nothing; give it at least the size of one memory")
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FoveateError(f"{self.directory} can't be a store ({error.strerror or error})") from error

    @staticmethod
    def key(image: bytes | Tensor, base: str, adapter: str) -> str:
        """The name of a memory: a hash of image, base model and adapter.

        Args:
            image: the file's bytes, or pixel values as the processor made them.
            base: `voco.base`.
            adapter: `voco.fingerprint(tokens)`.
        """
        digest = hashlib.sha256(f"{base} {adapter} ".encode())
        if isinstance(image, Tensor):
            digest.update(f"{tuple(image.shape)} {image.dtype} ".encode())
            image = image.detach().float().cpu().contiguous().numpy().tobytes()
        digest.update(image)
        return digest.hexdigest()

    def get(self, key: str) -> VoCoMemory | None:
        """The memory of this name, or None."""
        path = self._path(key)
        try:
            memory = VoCoMemory.load(path)
            os.utime(path)
        except FoveateError:
            path.unlink(missing_ok=True)
            return None
        except OSError:
            return None
        return memory

    def put(self, key: str, memory: VoCoMemory) -> None:
        """Keep a memory under this name, and make room for it.

        Raises:
            FoveateError: it is larger than the whole store, or the disk is full.
        """
        if memory.nbytes > self.max_bytes:
            raise FoveateError(f"a memory of {memory.nbytes} bytes is larger than the store of {self.max_bytes}")
        memory.save(self._path(key))
        self._make_room(keep=self._path(key))

    def get_or_make(self, key: str, make: Callable[[], VoCoMemory]) -> VoCoMemory:
        """The memory of this name; if there is none, it is made and kept."""
        memory = self.get(key)
        if memory is None:
            memory = make()
            self.put(key, memory)
        return memory

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(size for _, _, size in self._files())

    def __len__(self) -> int:
        return len(self._files())

    def __contains__(self, key: Any) -> bool:
        return self._path(str(key)).is_file()

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"

    def _files(self) -> list[tuple[float, Path, int]]:
        """Time of last use, path and size of each memory."""
        found: list[tuple[float, Path, int]] = []
        for path in self.directory.glob(f"[!.]*{_SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, path, status.st_size))
        return found

    def _make_room(self, keep: Path) -> None:
        for path in self.directory.glob(".*.partial"):
            # Left by a process that was killed; one that is still writing needs seconds.
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        files = sorted(self._files())
        total = sum(size for _, _, size in files)
        for _, path, size in files:
            if total <= self.max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
