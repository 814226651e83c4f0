"""A folder of memories, found by a hash of their image: a second question about an image needs no encoder."""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.arguments import check_kind
from foveate.errors import FoveateError, FoveateWarning, shown
from foveate.families import family_of
from foveate.files import PARTIAL, FileFacts, facts_of_files, is_file, make_folder, remove_file, touch
from foveate.fingerprint import update_digest
from foveate.voco.embeddings import decoder_device_and_dtype
from foveate.voco.memory import DamagedMemory, VoCoMemory

_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600
_KEY = re.compile(r"\w[\w.-]*")
_TEXT_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "labels"}
"""What a processor returns besides images; a memory doesn't depend on the question."""


class MemoryStore:
    """A folder of memories, bounded in size; the least recently used are deleted first.

    Several processes may share it: a memory is written to a temporary name and renamed, a file that another process
    deletes counts as missing, and a damaged one is deleted and encoded again.

    Args:
        directory: created if it is missing.
        max_bytes: how many bytes its files may have together.

    Raises:
        FoveateError: the folder can't be created, or `max_bytes` is below 1.

    >>> import tempfile
    >>> store = MemoryStore(tempfile.mkdtemp(), max_bytes=10_000_000)
    >>> len(store)
    0
    """

    def __init__(self, directory: str | Path, max_bytes: int = 1 << 30) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise FoveateError(f"a store of {max_bytes} bytes holds nothing; allow at least the size of one memory")
        check_kind("directory", directory, (str, Path), "a path")
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        make_folder(self.directory)

    @staticmethod
    def key(image: bytes | Tensor | Mapping[str, Any], base: str, adapter: str) -> str:
        """Return the key of a memory: a hash of image, base model and adapter.

        Args:
            image: the processor's output, of which everything but the text counts; or the file's bytes; or pixel
                values, for a model that takes nothing else of an image, such as its rows and columns.
            base: `voco.base`.
            adapter: `voco.fingerprint(tokens)`.

        Raises:
            FoveateError: the processor's output has no image, or an argument is of another type.
        """
        check_kind(
            "an image", image, (bytes, Tensor, Mapping), "the processor's output, the bytes of a file, or pixels"
        )
        check_kind("base", base, str, "a text, as voco.base")
        check_kind("adapter", adapter, str, "a text, as voco.fingerprint() returns")
        digest = hashlib.sha256(f"{base} {adapter} ".encode("utf-8", "surrogatepass"))
        if isinstance(image, Mapping):
            for name in image:
                check_kind("a name in the processor's output", name, str, "a text such as pixel_values")
            names = sorted(set(image) - _TEXT_INPUTS)
            if not names:
                raise FoveateError("there is no image in the processor's output; pass that of a prompt with an image")
            for name in names:
                digest.update(f"{name} ".encode("utf-8", "surrogatepass"))
                update_digest(digest, image[name])
        else:
            update_digest(digest, image)
        return digest.hexdigest()

    def get(self, key: str, model: nn.Module | None = None) -> VoCoMemory | None:
        """Return the memory of a key, or None if there is none that can be read.

        Args:
            key: made by `key`.
            model: the memory is moved to the device and dtype of its decoder; None leaves it on the CPU, in the dtype
                that it was made in.
        """
        path = self._path(key)
        try:
            memory = VoCoMemory.load(path)
        except DamagedMemory:
            remove_file(path)
            return None
        except FoveateError:
            return None
        touch(path)
        return memory if model is None else memory.to(*decoder_device_and_dtype(family_of(model)))

    def put(self, key: str, memory: VoCoMemory) -> None:
        """Store a memory under a key, and delete others until the store fits its size.

        Raises:
            FoveateError: the memory's file is larger than the whole store, or it can't be written.
        """
        check_kind("a memory", memory, VoCoMemory, "a VoCoMemory, as voco.encode returns")
        self._check_fits(memory.nbytes)
        path = self._path(key)
        memory.save(path)
        self._evict(keep=path)

    def get_or_make(self, key: str, make: Callable[[], VoCoMemory], model: nn.Module | None = None) -> VoCoMemory:
        """Return the memory of a key; if there is none, make and store it.

        A memory that can't be stored is returned with a `FoveateWarning`.

        Args:
            key: made by `key`.
            make: encodes the image.
            model: as in `get`.
        """
        memory = self.get(key, model)
        if memory is None:
            if not callable(make):
                raise FoveateError(f"make must be a function that encodes the image, not {shown(make)}")
            memory = make()
            check_kind("what make returns", memory, VoCoMemory, "a VoCoMemory")
            try:
                self.put(key, memory)
            except FoveateError as error:
                warnings.warn(f"a memory was made and not stored: {error}", FoveateWarning, stacklevel=2)
        return memory

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes."""
        return sum(file.size for file in self._files())

    def __len__(self) -> int:
        return len(self._files())

    def __contains__(self, key: Any) -> bool:
        return is_file(self._path(str(key)))

    def _path(self, key: str) -> Path:
        if not isinstance(key, str) or not _KEY.fullmatch(key):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FoveateError(f"{shown(key)} is no key of a memory; MemoryStore.key makes one of an image")
        return self.directory / f"{key}{_SUFFIX}"

    def _files(self) -> list[FileFacts]:
        """Return the memories, the least recently used first."""
        return facts_of_files(self.directory, f"[!.]*{_SUFFIX}")

    def _check_fits(self, size: int) -> None:
        """Check that so many bytes have room in an empty store.

        Raises:
            FoveateError: they don't.
        """
        if size > self.max_bytes:
            raise FoveateError(
                f"a memory of {size:,} bytes is larger than the store of {self.max_bytes:,}; raise max_bytes, or keep "
                "fewer tokens of it"
            )

    def _evict(self, keep: Path) -> None:
        """Delete the least recently used memories until the store fits its size.

        Raises:
            FoveateError: the one to keep doesn't fit by itself; it alone is deleted.
        """
        for file in facts_of_files(self.directory, f".*{PARTIAL}"):
            # Left by a process that was killed: writing takes seconds.
            if time.time_ns() - file.modified > _STALE_SECONDS * 10**9:
                remove_file(file.path)
        files = self._files()
        total = sum(file.size for file in files)
        for file in files:
            if file.path == keep and file.size > self.max_bytes:
                # A file has a header beside the tensors.
                remove_file(keep)
                self._check_fits(file.size)
        for file in files:
            if total <= self.max_bytes:
                return
            if file.path != keep:
                remove_file(file.path)
                total -= file.size
