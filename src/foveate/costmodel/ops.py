"""Operations and their FLOPs, bytes and kernel launches, independent of any model.

One multiply-add is 2 FLOPs. FLOPs of matrix products, convolutions and attention are counted as torch's own counter
counts them: attention as the whole rectangle of queries and keys, masked or not. Norms, activations and other
elementwise operations have bytes and launches, and no FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# Reads and writes of each element, and kernels, of transformers' eager code between matrix products.
_NORM_PASSES, _NORM_LAUNCHES = 7, 6
_ROTARY_PASSES, _ROTARY_LAUNCHES = 10, 10
_FLOAT32 = 4


@dataclass(frozen=True)
class Op:
    """One operation, repeated `times` times in sequence; all numbers are for one repetition.

    Attributes:
        name: of the operation.
        flops: FLOPs, masked ones included.
        weights: bytes of weights that are read.
        moved: bytes of activations and cache that are read and written.
        launches: kernels.
        waits: how often the host waits for the device.
        times: repetitions.
        needed: the share of the FLOPs that are not masked; a kernel that skips masked ones computes only these.
        rows: rows of a product, or queries of attention; with few rows a device does not reach its full rate.
    """

    name: str
    flops: float = 0.0
    weights: float = 0.0
    moved: float = 0.0
    launches: int = 1
    waits: int = 0
    times: int = 1
    needed: float = 1.0
    rows: float = 0.0


def linear(name: str, rows: float, inner: int, outer: int, size: int, batch: int = 1) -> Op:
    """Count a product of `rows` x `inner` activations with `inner` x `outer` weights, `batch` times in parallel."""
    return Op(
        name,
        flops=2 * rows * inner * outer * batch,
        weights=inner * outer * size,
        moved=rows * (inner + outer) * size * batch,
        rows=rows,
    )


def attention(
    batch: float, heads: int, groups: int, head: int, queries: int, keys: float, size: int, needed: float = 1.0
) -> Op:
    """Count attention of `heads` query heads to `groups` key heads, by a kernel that does not store scores."""
    return Op(
        "attention",
        flops=4 * batch * heads * head * queries * keys,
        moved=batch * (2 * heads * queries + 2 * groups * keys) * head * size,
        needed=needed,
        rows=queries,
    )


def norm(rows: float, width: int) -> Op:
    """Count a layer norm or RMS norm in float32, one kernel per operation."""
    return Op("norm", moved=_NORM_PASSES * rows * width * _FLOAT32, launches=_NORM_LAUNCHES)


def fused_norm(rows: float, width: int, size: int) -> Op:
    """Count a layer norm that is one kernel."""
    return Op("norm", moved=2 * rows * width * size)


def rotary(rows: float, width: int, size: int) -> Op:
    """Count the rotary embedding of queries and keys."""
    return Op("rotary", moved=_ROTARY_PASSES * rows * width * size, launches=_ROTARY_LAUNCHES)


def elementwise(name: str, elements: float, passes: int, size: int, launches: int = 1) -> Op:
    """Count an elementwise operation that reads or writes each element `passes` times."""
    return Op(name, moved=elements * passes * size, launches=launches)


def repeated(ops: Iterable[Op], times: int) -> list[Op]:
    """Repeat operations `times` times."""
    return [replace(op, times=op.times * times) for op in ops]


@dataclass(frozen=True)
class CallPart:
    """The operations of one part of a call: encoder, projector, compressor, prefill, head or decode."""

    name: str
    ops: tuple[Op, ...]

    @property
    def flops(self) -> float:
        """FLOPs."""
        return sum(op.flops * op.times for op in self.ops)

    @property
    def moved(self) -> float:
        """Bytes read and written, weights included."""
        return sum((op.weights + op.moved) * op.times for op in self.ops)

    @property
    def launches(self) -> int:
        """Kernels."""
        return sum(op.launches * op.times for op in self.ops)

    @property
    def waits(self) -> int:
        """How often the host waits for the device."""
        return sum(op.waits * op.times for op in self.ops)
