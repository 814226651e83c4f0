"""Memories on disk, found by what they were made from: the second question on a known image reads no pixels."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, FoveateWarning
from foveate.families import family_of
from foveate.voco.memory import DamagedMemory, VoCoMemory
from foveate.voco.passes import home

_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600
_OF_TEXT = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "labels"}
"""What a processor returns besides images: a memory is the same whatever is asked about it."""


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
    def key(image: bytes | Tensor | Mapping[str, Any], base: str, adapter: str) -> str:
        """The name of a memory: a hash of image, base model and adapter.

        Args:
            image: what the processor returned, of which everything counts but the text; or the file's bytes; or pixel
                values alone, for a model that is given nothing else of an image, such as its rows and columns.
            base: `voco.base`.
            adapter: `voco.fingerprint(tokens)`.

        Raises:
            FoveateError: the processor's output holds no image.
        """
        digest = hashlib.sha256(f"{base} {adapter} ".encode())
        if isinstance(image, Mapping):
            names = sorted(set(image) - _OF_TEXT)
            if not names:
                raise FoveateError("there is no image in what the processor returned; a memory is made of one")
            for name in names:
                digest.update(f"{name} ".encode())
                _digest(digest, image[name])
        else:
            _digest(digest, image)
        return digest.hexdigest()

    def get(self, key: str, model: nn.Module | None = None) -> VoCoMemory | None:
        """The memory of this name, or None.

        Args:
            key: its name.
            model: the memory is brought to the device and dtype of its decoder; None leaves it on the CPU, in the
                dtype that it was made in.
        """
        path = self._path(key)
        try:
            memory = VoCoMemory.load(path)
        except DamagedMemory:
            with suppress(OSError):
                path.unlink()
            return None
        except FoveateError:
            return None
        with suppress(OSError):  # a store that can only be read
            os.utime(path)
        return memory if model is None else memory.to(*home(family_of(model)))

    def put(self, key: str, memory: VoCoMemory) -> None:
        """Keep a memory under this name, and make room for it.

        Raises:
            FoveateError: it is larger than the whole store, or the disk is full.
        """
        if memory.nbytes > self.max_bytes:
            raise FoveateError(f"a memory of {memory.nbytes} bytes is larger than the store of {self.max_bytes}")
        memory.save(self._path(key))
        self._make_room(keep=self._path(key))

    def get_or_make(self, key: str, make: Callable[[], VoCoMemory], model: nn.Module | None = None) -> VoCoMemory:
        """The memory of this name; if there is none, it is made and kept, or only made, with a warning.

        Args:
            key: its name.
            make: encodes the image.
            model: as in `get`.
        """
        memory = self.get(key, model)
        if memory is None:
            memory = make()
            try:
                self.put(key, memory)
            except FoveateError as error:
                warnings.warn(f"a memory was made and not kept: {error}", FoveateWarning, stacklevel=2)
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
            except OSError:
                continue
            found.append((status.st_mtime, path, status.st_size))
        return found

    def _make_room(self, keep: Path) -> None:
        for path in self.directory.glob(".*.partial"):
            # Left by a process that was killed; one that is still writing needs seconds.
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        files = sorted(self._files())
        total = sum(size for _, _, size in files)
        for _, path, size in files:
            if total <= self.max_bytes:
                return
            if path != keep:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size


def _digest(digest: Any, value: Any) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _digest(digest, each)
        return
    if not isinstance(value, bytes):
        tensor = torch.as_tensor(value).detach().cpu()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        # numpy has no bfloat16.
        value = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy().tobytes()
    digest.update(value)
