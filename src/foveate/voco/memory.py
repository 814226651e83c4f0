"""The keys and values of an image's VoCo tokens: move, join, save and load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.adapters import FLOATS
from foveate.arguments import check_kind, listed
from foveate.devices import checked_device
from foveate.errors import FoveateError, UnsupportedFamily, first_line, shown
from foveate.families.turning import turned
from foveate.files import DamagedFile, FileError, open_tensors, shown_path, write_tensors
from foveate.numbers import Between, check_whole, read_whole

_FORMAT = "foveate-voco-memory-1"
_FLAGS = {"True": True, "False": False}


class DamagedMemory(FoveateError):
    """Reports a corrupt or truncated memory file."""


@dataclass(frozen=True, eq=False, repr=False)
class VoCoMemory:
    """The decoder's keys and values at the VoCo tokens of one image, or of several in order.

    Attributes:
        keys: `(layers, H, n, d)`, after rotary embedding.
        values: `(layers, H, n, d)`.
        begin: the position id of the first token of its first segment.
        end: the position id of the token that follows; visual tokens count, as they did in training.
        visual_tokens: how many visual tokens it stands for.
        base: the fingerprint of the model that made it.
        adapter: the fingerprint of the adapter that made it.
        frequencies: `(r / 2,)` float32, the rotary frequencies in radians per position, by which the memory is moved
            without the model; empty if the decoder's keys can't be rotated by them.
        images: how many images it holds.
        packed: of several images, whether they were joined so.

    >>> keys = torch.zeros(2, 1, 4, 8)
    >>> memory = VoCoMemory(keys, keys, 0, 581, 576, "base", "adapter:4", torch.ones(4))
    >>> memory.tokens, memory.nbytes, memory.first(2).end
    (4, 512, 579)
    >>> memory
    VoCoMemory(4 tokens for 576, 1 image, 512 bytes)
    """

    keys: Float[Tensor, "layers H n d"]
    values: Float[Tensor, "layers H n d"]
    begin: int
    end: int
    visual_tokens: int
    base: str
    adapter: str
    frequencies: Float[Tensor, "half"]
    images: int = 1
    packed: bool = False

    def __post_init__(self) -> None:
        _check_shapes(self.keys, self.values, self.frequencies)
        for name, least in (("begin", 0), ("end", 1), ("visual_tokens", 0), ("images", 1)):
            check_whole(f"{name} of a memory", getattr(self, name), Between(least))
        for name in ("base", "adapter"):
            check_kind(f"{name} of a memory", getattr(self, name), str, "a fingerprint")
        check_kind("packed of a memory", self.packed, bool, "True or False")
        if self.end <= self.begin:
            raise FoveateError(f"a memory from position {self.begin} to {self.end} can't be; encode the image again")

    def __repr__(self) -> str:
        images = f"{self.images} image{'s' if self.images > 1 else ''}"
        return f"{type(self).__name__}({self.tokens} tokens for {self.visual_tokens}, {images}, {self.nbytes:,} bytes)"

    @property
    def tokens(self) -> int:
        """How many tokens the cache gets from it, `n`."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """The size of keys and values in bytes."""
        return self.keys.nbytes + self.values.nbytes

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VoCoMemory:
        """Return the memory on another device or in another floating dtype.

        Raises:
            FoveateError: there is no such device, or the dtype is no float.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise FoveateError(f"dtype must be a float such as torch.bfloat16, not {shown(dtype)}")
        if device is not None:
            device = checked_device(device)
        return replace(
            self,
            keys=self.keys.to(device, dtype),
            values=self.values.to(device, dtype),
            frequencies=self.frequencies.to(device),
        )

    def first(self, tokens: int) -> VoCoMemory:
        """Return the memory that the first VoCo tokens alone would have made: each saw only those before it.

        Raises:
            FoveateError: the memory has fewer tokens, or holds several images.
        """
        check_whole("tokens", tokens)
        if tokens == self.tokens:
            return self
        if not 1 <= tokens <= self.tokens:
            raise FoveateError(f"{tokens} tokens were asked for, and this memory has from 1 to {self.tokens}")
        if self.images > 1:
            raise FoveateError(f"this is the memory of {self.images} images; take the first tokens of each, then join")
        return replace(
            self,
            keys=self.keys[:, :, :tokens],
            values=self.values[:, :, :tokens],
            end=self.end - self.tokens + tokens,
            adapter=f"{self.adapter.split(':')[0]}:{tokens}",
        )

    def moved(self, begin: int) -> VoCoMemory:
        """Return the memory as if its image had been read at position `begin`.

        Attention inside a segment depends on distances alone, so rotating each key by the difference equals reading
        the image at the new position. With M-RoPE, all axes move alike.

        Raises:
            UnsupportedFamily: the keys of this decoder can't be rotated so.
        """
        check_whole("begin", begin, Between(0))
        by = begin - self.begin
        return replace(self, keys=self._turned(by), begin=begin, end=self.end + by)

    def _turned(self, by: int) -> Float[Tensor, "layers H n d"]:
        """Return the keys as many positions further on.

        Raises:
            UnsupportedFamily: as `moved`.
        """
        if not by:
            return self.keys
        if not self.frequencies.shape[0]:
            raise UnsupportedFamily(
                "this memory can't be moved or joined to another one: its decoder doesn't rotate the keys of all "
                "layers by one set of frequencies; ask about one image at a time"
            )
        return turned(self.keys, self.frequencies, by).to(self.keys.dtype)

    def append(self, segment: VoCoMemory, *, packed: bool = False) -> VoCoMemory:
        """Return this memory with one more segment after it, whose keys are moved to where this one ends.

        A stream grows by the VoCo tokens of a segment each time, and by nothing else.

        Args:
            segment: read alone, by `VoCo.encode`.
            packed: as in `joined`.

        Raises:
            FoveateError: the segment comes from another model or adapter, or has another dtype; or it or this memory
                holds several images that were joined in the other way.
            UnsupportedFamily: the keys of its decoder can't be rotated to another position.

        >>> keys = torch.zeros(2, 1, 4, 8)
        >>> memory = VoCoMemory(keys, keys, 0, 581, 576, "base", "adapter:4", torch.ones(4))
        >>> longer = memory.append(memory, packed=True)
        >>> longer.tokens, longer.images, longer.end, longer.nbytes - memory.nbytes == memory.nbytes
        (8, 2, 585, True)
        """
        return VoCoMemory.joined([self, *memories_of([segment])], packed=packed)

    @staticmethod
    def joined(memories: Sequence[VoCoMemory], *, packed: bool = False) -> VoCoMemory:
        """Join memories in order: each is moved to where the one before it ends.

        They may have different numbers of tokens. The result is on the device of the first.

        Args:
            memories: of one or several images each; several were joined with the same `packed`.
            packed: positions count only the VoCo tokens of images after the first; else the visual tokens count, too,
                and a long video runs out of positions.

        Raises:
            FoveateError: there is none, or they come from different models or adapters, or have different dtypes, or
                one holds several images that were joined in the other way.
            UnsupportedFamily: the keys of their decoder can't be rotated to another position.
        """
        memories = memories_of(memories)
        if not memories:
            raise FoveateError("there is no memory to join; encode an image first")
        first = memories[0]
        for number, other in enumerate(memories[1:], start=2):
            first.check_joins(other, f"memory {number}")
        for number, memory in enumerate(memories, start=1):
            if memory.images > 1 and memory.packed != packed:
                # The positions between its images are no longer known, so that they can't be placed anew.
                raise FoveateError(
                    f"memory {number} holds {memory.images} images that were joined with packed={memory.packed}, and "
                    f"this join has packed={packed}; join all of them alike, from the memories of single images"
                )
        keys, end = [first.keys], first.end
        for memory in memories[1:]:
            # Packed, its VoCo tokens follow at once; what they have read may then begin before position 0.
            begin = end - (memory.end - memory.begin - memory.tokens if packed else 0)
            keys.append(memory._turned(begin - memory.begin))
            end = begin + memory.end - memory.begin
        device = first.keys.device
        same_adapter = all(memory.adapter == first.adapter for memory in memories)
        return replace(
            first,
            keys=torch.cat([each.to(device) for each in keys], dim=2),
            values=torch.cat([memory.values.to(device) for memory in memories], dim=2),
            end=end,
            adapter=first.adapter if same_adapter else first.adapter.split(":")[0],
            visual_tokens=sum(memory.visual_tokens for memory in memories),
            images=sum(memory.images for memory in memories),
            packed=packed,
        )

    def check_joins(self, other: VoCoMemory, name: str) -> None:
        """Check that another memory can be joined to this one.

        Args:
            other: the other memory.
            name: what the error calls it.

        Raises:
            FoveateError: it comes from another model or adapter, or has another shape or dtype.
        """
        if (self.base, self.adapter.split(":")[0]) != (other.base, other.adapter.split(":")[0]):
            raise FoveateError(f"{name} was made by another model or adapter; join memories of one adapter")
        (layers, heads, _, width), found = self.keys.shape, other.keys.shape
        if (layers, heads, width) != (found[0], found[1], found[3]):
            raise FoveateError(
                f"{name} has {found[0]} layers of {found[1]} heads of {found[3]}, and this model has {layers} of "
                f"{heads} of {width}; it was made by another model"
            )
        if self.keys.dtype != other.keys.dtype:
            raise FoveateError(
                f"{name} is {other.keys.dtype} and the others are {self.keys.dtype}; convert it with .to(dtype=...)"
            )

    def save(self, path: str | Path) -> Path:
        """Write the memory to one safetensors file, atomically; its folder is created if it is missing.

        Raises:
            FoveateError: the file can't be written.
        """
        tensors = {
            "keys": self.keys.contiguous(),
            "values": self.values.contiguous(),
            "frequencies": self.frequencies.contiguous(),
        }
        metadata = {
            "format": _FORMAT,
            "begin": str(self.begin),
            "end": str(self.end),
            "visual_tokens": str(self.visual_tokens),
            "images": str(self.images),
            "packed": str(self.packed),
            "base": self.base,
            "adapter": self.adapter,
        }
        write_tensors(path, tensors, metadata)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> VoCoMemory:
        """Read what `save` wrote.

        Raises:
            DamagedMemory: the file is corrupt or truncated, or no VoCo memory.
            FoveateError: there is no such file, or it can't be opened now.
        """
        try:
            with open_tensors(path, "memory", "encode the image, and save its memory") as file:
                metadata: dict[str, Any] = dict(file.metadata() or {})
                if metadata.get("format") == _FORMAT:
                    tensors = {name: file.get_tensor(name) for name in ("keys", "values", "frequencies")}
                    _check_finite(tensors)
                    images = read_whole(metadata.get("images", "1"))
                    memory = cls(
                        **tensors,
                        begin=read_whole(metadata["begin"]),
                        end=read_whole(metadata["end"]),
                        visual_tokens=read_whole(metadata["visual_tokens"]),
                        images=images,
                        # Of one image it says nothing, so that older files of one may leave it out.
                        packed=_FLAGS[metadata["packed"] if images > 1 else "False"],
                        base=metadata["base"],
                        adapter=metadata["adapter"],
                    )
                    if memory.end - memory.begin < memory.tokens:
                        raise ValueError(f"{memory.tokens} tokens at {memory.end - memory.begin} positions")
                    return memory
        except (DamagedFile, KeyError, ValueError) as error:
            if isinstance(error, FileError) and not isinstance(error, DamagedFile):
                raise
            raise DamagedMemory(
                f"{shown_path(path)} is truncated or damaged ({first_line(error)}); encode the image again"
            ) from error
        raise DamagedMemory(f"{shown_path(path)} is not a VoCo memory; save one with memory.save(path)")


def memories_of(memories: Sequence[VoCoMemory]) -> list[VoCoMemory]:
    """Return memories as a list.

    Raises:
        FoveateError: they are something else.
    """
    found = listed("memories", memories, "VoCoMemory objects")
    for memory in found:
        check_kind("a memory", memory, VoCoMemory, "a VoCoMemory, as voco.encode returns")
    return found


def _check_shapes(keys: Tensor, values: Tensor, frequencies: Tensor) -> None:
    """Check that tensors are those of a memory, by shape and type.

    Raises:
        FoveateError: one isn't.
    """
    for name, value in (("keys", keys), ("values", values), ("frequencies", frequencies)):
        check_kind(f"{name} of a memory", value, Tensor, "a tensor")
    if keys.ndim != 4 or not keys.numel() or keys.shape != values.shape or keys.dtype != values.dtype:
        raise FoveateError(
            f"keys {tuple(keys.shape)} {keys.dtype} and values {tuple(values.shape)} {values.dtype} must be alike, and "
            "(layers, heads, tokens, width)"
        )
    if keys.dtype not in FLOATS or frequencies.dtype != torch.float32 or frequencies.ndim != 1:
        raise FoveateError(
            f"keys are {keys.dtype} and frequencies {tuple(frequencies.shape)} {frequencies.dtype}; they must be "
            "floats, and float32 (frequencies)"
        )
    if 2 * frequencies.shape[0] > keys.shape[3]:
        raise FoveateError(f"{frequencies.shape[0]} frequencies turn more than the {keys.shape[3]} numbers of a key")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that no number of a file is NaN or infinite.

    Raises:
        ValueError: one is.
    """
    if not all(bool(each.isfinite().all()) for each in tensors.values()):
        raise ValueError("it has NaN or infinite numbers")
