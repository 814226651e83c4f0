"""What a piece of work is made of: arithmetic, bytes and launches.  Nothing in here knows a model.

One multiply-add is 2 FLOPs. Matrix products, convolutions and attention are counted, as torch's own counter counts
them: attention as the whole rectangle of queries and keys, masked or not. Norms, activations and other elementwise
work have bytes and launches, and no FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# Passes over memory of what eager transformers does between the matrix products, in elements per element.
_NORM_PASSES, _NORM_LAUNCHES = 7, 6
_ROTARY_PASSES, _ROTARY_LAUNCHES = 10, 10
_FLOAT32 = 4


@dataclass(frozen=True)
class Op:
    """One kind of operation, done `times` times one behind another; all numbers are those of one time.

    Attributes:
        name: what it is.
        flops: FLOPs, masked ones too.
        weights: bytes of weights that are read.
        moved: bytes of activations and cache that are read and written.
        launches: kernels.
        times: how often it is done.
        needed: the share of the FLOPs that no mask throws away; a kernel that skips the rest does only these.
        rows: rows of a product, or queries of an attention: few of them keep arithmetic units waiting.
    """

    name: str
    flops: float = 0.0
    weights: float = 0.0
    moved: float = 0.0
    launches: int = 1
    times: int = 1
    needed: float = 1.0
    rows: float = 0.0


def linear(name: str, rows: float, inner: int, outer: int, size: int, batch: int = 1) -> Op:
    """A matrix product of `rows` x `inner` activations with `inner` x `outer` weights, `batch` times in parallel."""
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
    """Scores and sums of `heads` query heads and `groups` key heads, by a kernel that stores no scores."""
    return Op(
        "attention",
        flops=4 * batch * heads * head * queries * keys,
        moved=batch * (2 * heads * queries + 2 * groups * keys) * head * size,
        needed=needed,
        rows=queries,
    )


def norm(rows: float, width: int) -> Op:
    """A layer norm or RMS norm; they are computed in float32."""
    return Op("norm", moved=_NORM_PASSES * rows * width * _FLOAT32, launches=_NORM_LAUNCHES)


def fused_norm(rows: float, width: int, size: int) -> Op:
    """A layer norm that is one kernel."""
    return Op("norm", moved=2 * rows * width * size)


def rotary(rows: float, width: int, size: int) -> Op:
    """Rotary embedding of queries and keys."""
    return Op("rotary", moved=_ROTARY_PASSES * rows * width * size, launches=_ROTARY_LAUNCHES)


def elementwise(name: str, elements: float, passes: int, size: int, launches: int = 1) -> Op:
    """Anything else that goes over its elements: `passes` counts reads and writes."""
    return Op(name, moved=elements * passes * size, launches=launches)


def repeated(ops: Iterable[Op], times: int) -> list[Op]:
    """The same operations, `times` times."""
    return [replace(op, times=op.times * times) for op in ops]


@dataclass(frozen=True)
class CallPart:
    """One part of a call: encoder, projector, compressor, prefill, decode, head."""

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
