"""An image as n tokens of keys and values: kept, shared, moved, joined, and written to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.turning import turned

_FORMAT = "foveate-voco-memory-1"


class DamagedMemory(FoveateError):
    """A file that is no whole memory, and won't become one."""


@dataclass(frozen=True, eq=False)
class VoCoMemory:
    """What a decoder remembers of one image, or of several in order.

    Attributes:
        keys: `(layers, H, n, d)`, after rotary embedding.
        values: `(layers, H, n, d)`.
        begin: the position id at which its first segment begins.
        end: the position id of the token that follows; the image's full length counts, as it did in training.
        visual_tokens: how many visual tokens it stands for.
        base: the fingerprint of the model that made it.
        adapter: the fingerprint of the adapter that made it.
        frequencies: `(r / 2,)` float32, the rotary frequencies, so that it can be moved without the model; empty for a
            decoder whose keys can't be turned by them.
        images: how many images it holds, one behind the other.
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

    @property
    def tokens(self) -> int:
        """Tokens of KV: `n`."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VoCoMemory:
        """The same memory on another device or in another floating dtype."""
        return replace(
            self,
            keys=self.keys.to(device, dtype),
            values=self.values.to(device, dtype),
            frequencies=self.frequencies.to(device),
        )

    def first(self, tokens: int) -> VoCoMemory:
        """The memory of one image as if fewer VoCo tokens had read it: each token saw only those before it.

        Raises:
            FoveateError: it has fewer tokens than that, or it is the memory of several images.
        """
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
        """The same memory as if its image had stood at position `begin`.

        Keys are kept after rotary embedding, and attention inside a segment depends on distances alone, so turning each
        key by the difference equals encoding at the new place. With M-RoPE all axes move alike.

        Raises:
            UnsupportedFamily: the keys of this decoder can't be turned so.
        """
        if begin == self.begin:
            return self
        if not self.frequencies.shape[0]:
            raise UnsupportedFamily(
                "this memory can't be moved, nor joined to another one: its decoder doesn't turn the keys of all "
                "layers by one set of frequencies; ask about one image at a time"
            )
        keys = turned(self.keys, self.frequencies, begin - self.begin).to(self.keys.dtype)
        return replace(self, keys=keys, begin=begin, end=self.end + begin - self.begin)

    @staticmethod
    def joined(memories: Sequence[VoCoMemory], *, packed: bool = False) -> VoCoMemory:
        """Memories one after another: each is moved to where the one before it ended, so their order is known.

        They may have different numbers of tokens; all are brought to the device of the first.

        Args:
            memories: of images, or of several images each.
            packed: VoCo tokens stand right behind one another, and positions grow by as many as there are of them; else
                every image takes the positions of all its visual tokens, which a long video has not enough of.

        Raises:
            FoveateError: there is none, or they come from different models or adapters, or have different dtypes.
            UnsupportedFamily: the keys of their decoder can't be turned to another position.
        """
        if not memories:
            raise FoveateError("there is no memory to join; encode an image first")
        first = memories[0]
        for number, other in enumerate(memories[1:], start=2):
            first.check_beside(other, f"memory {number}")
        chain = [first]
        for memory in memories[1:]:
            before = memory.end - memory.begin - memory.tokens if packed else 0
            chain.append(memory.moved(chain[-1].end - before))
        device = first.keys.device
        alike = all(memory.adapter == first.adapter for memory in chain)
        return replace(
            first,
            keys=torch.cat([memory.keys.to(device) for memory in chain], dim=2),
            values=torch.cat([memory.values.to(device) for memory in chain], dim=2),
            end=chain[-1].end,
            adapter=first.adapter if alike else first.adapter.split(":")[0],
            visual_tokens=sum(memory.visual_tokens for memory in chain),
            images=sum(memory.images for memory in chain),
        )

    def check_beside(self, other: VoCoMemory, name: str) -> None:
        """Whether another memory can stand in one batch or row with this one.

        Raises:
            FoveateError: it comes from another model or adapter, or has another shape or dtype.
        """
        if (self.base, self.adapter.split(":")[0]) != (other.base, other.adapter.split(":")[0]):
            raise FoveateError(f"{name} was made by another model or adapter; memories that meet must come from one")
        mine, its = self.keys.shape, other.keys.shape
        if (mine[0], mine[1], mine[3]) != (its[0], its[1], its[3]):
            raise FoveateError(
                f"{name} has {its[0]} layers of {its[1]} heads of {its[3]}, and this model has {mine[0]} of {mine[1]} "
                f"of {mine[3]}; it was made by another model"
            )
        if self.keys.dtype != other.keys.dtype:
            raise FoveateError(
                f"{name} is {other.keys.dtype} and the others are {self.keys.dtype}; bring it over with .to"
            )

    def save(self, path: str | Path) -> Path:
        """Write it to one safetensors file, whole or not at all.

        Raises:
            FoveateError: the file can't be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {
            "keys": self.keys.contiguous(),
            "values": self.values.contiguous(),
            "frequencies": self.frequencies.contiguous(),
        }
        facts = {
            "format": _FORMAT,
            "begin": str(self.begin),
            "end": str(self.end),
            "visual_tokens": str(self.visual_tokens),
            "images": str(self.images),
            "base": self.base,
            "adapter": self.adapter,
        }
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)
            os.close(handle)
            save_file(tensors, temporary, facts)
            Path(temporary).replace(path)
        except (OSError, SafetensorError) as error:
            raise FoveateError(f"{path} can't be written ({getattr(error, 'strerror', None) or error})") from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> VoCoMemory:
        """Read what `save` wrote.

        Raises:
            DamagedMemory: the file is no whole memory.
            FoveateError: there is no such file, or it can't be opened now.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not os.access(path, os.F_OK):
            raise FoveateError(f"there is no memory at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = dict(file.metadata() or {})
                if facts.get("format") == _FORMAT:
                    tensors = {name: file.get_tensor(name) for name in ("keys", "values", "frequencies")}
                    return cls(
                        **tensors,
                        begin=int(facts["begin"]),
                        end=int(facts["end"]),
                        visual_tokens=int(facts["visual_tokens"]),
                        images=int(facts.get("images", "1")),
                        base=facts["base"],
                        adapter=facts["adapter"],
                    )
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when it can't open a file
            raise FoveateError(f"{path} can't be opened now ({error}); try again") from error
        except (SafetensorError, KeyError, ValueError) as error:
            raise DamagedMemory(f"{path} is cut short or damaged ({error}); encode the image again") from error
        raise DamagedMemory(f"{path} is no VoCo memory; save one with memory.save(path)")
