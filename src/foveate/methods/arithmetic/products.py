"""Products and distances of all pairs of tokens: a matrix for usual images, block by block for very large ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

import torch
from jaxtyping import Float, Float32, Int64

from foveate.devices import on_cpu

if TYPE_CHECKING:
    from torch import Tensor

WHOLE: Final = 4096
"""The most tokens of an image whose pairs are all in memory at once (64 MiB)."""
BLOCK_BYTES: Final = 2**21
"""Bytes of a block on a CPU, where it should stay in the cache."""
_BLOCK: Final = 2**26
"""Bytes of a block on other devices, where launching an operation may take longer than the operation."""
_FLOAT32: Final = 4
_STRIPS: Final = 12
"""Strips of rows in which a CPU multiplies a matrix with itself: more save more products, and each costs some time."""


def block_bytes(x: Tensor) -> int:
    """Return how many bytes of numbers a block should have on the device of a tensor."""
    return BLOCK_BYTES if on_cpu(x) else _BLOCK


def row_blocks(rows: int, row: int, x: Tensor) -> list[slice]:
    """Split rows into equal blocks of a fixed number of bytes.

    Write what is left of a block into one tensor for all. A list of small tensors, each made between two blocks, pins
    the memory of every block: thousands of blocks hold gigabytes that no tensor has.

    Args:
        rows: how many there are.
        row: float32 numbers in one.
        x: a tensor on the device that computes them.

    >>> row_blocks(5, 2**18, torch.zeros(1))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return _runs(rows, max(1, block_bytes(x) // max(1, row * _FLOAT32)))


def lengths(x: Float32[Tensor, "*shape D"]) -> Float32[Tensor, "*shape"]:
    """Return the Euclidean norm of each vector."""
    return cast("Tensor", torch.linalg.vector_norm(x, dim=-1))  # pyright: ignore[reportUnknownMemberType]


def unit_vectors(x: Float32[Tensor, "*shape D"]) -> Float32[Tensor, "*shape D"]:
    """Scale each vector to length 1; one without length stays as it is."""
    return torch.nn.functional.normalize(x, dim=-1)


def pairs_bytes(count: int, width: int) -> int:
    """Estimate the most bytes that `Pairs` of one image hold on a CPU, the vectors included."""
    vectors = _FLOAT32 * count * width
    if count > WHOLE:
        # A block, and the one before it.
        return vectors + 2 * BLOCK_BYTES
    strip = min(count, max(96, -(-count // _STRIPS)))
    return vectors + _FLOAT32 * (count**2 + 2 * strip * (count - strip))


class Pairs:
    """A symmetric value of every pair of tokens: their product, or their squared distance.

    Up to `WHOLE` tokens, the values are computed once and kept as a matrix. For more tokens, they are computed whenever
    they are read, so memory grows with N and not with its square. A distance is 0 on the diagonal, and bitwise the same
    in both directions.

    >>> tokens = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])
    >>> Pairs(tokens).rows(torch.tensor([1])).tolist(), Pairs(tokens, distances=True).matrix.tolist()
    ([[2.0, 5.0]], [[[0.0, 2.0], [2.0, 0.0]]])

    Attributes:
        count: N.
        matrix: `(B, N, N)` float32, the values; None above `whole` tokens.

    Args:
        x: `(B, N, D)` float32.
        distances: whether the values are squared distances.
        whole: the most tokens for a matrix.
    """

    def __init__(self, x: Float32[Tensor, "B N D"], distances: bool = False, whole: int | None = None) -> None:
        self._x = x
        self.count: int = x.shape[1]
        self._length = lengths(x).square_() if distances else None
        self._images = torch.arange(x.shape[0], device=x.device)
        self.matrix: Float32[Tensor, "B N N"] | None = None
        if x.shape[1] <= (WHOLE if whole is None else whole):
            self.matrix = self._all()

    @classmethod
    def of(cls, matrix: Float[Tensor, "B N N"]) -> Pairs:
        """Return pairs whose values are known."""
        return cls(matrix, whole=0)._with(matrix)

    def _with(self, matrix: Float[Tensor, "B N N"]) -> Pairs:
        self.matrix = matrix
        return self

    @property
    def on_cpu(self) -> bool:
        """Return whether a CPU computes the values."""
        return on_cpu(self._x)

    def rows(self, index: Int64[Tensor, " B"]) -> Float32[Tensor, "B N"]:
        """Return the products of one token of each image with all of its tokens. Not for distances."""
        if self.matrix is not None:
            return self.matrix[self._images, index]
        return torch.bmm(self._x[self._images, index][:, None], self._x.transpose(1, 2))[:, 0]

    def rows_of(self, image: Int64[Tensor, " R"], index: Int64[Tensor, " R"]) -> Float32[Tensor, "R N"]:
        """Return the products of some tokens with all of their image. Not for distances.

        Args:
            image: the image of each token, ascending.
            index: the tokens.
        """
        if self.matrix is not None:
            return self.matrix[image, index]
        images = range(len(self._x))
        return torch.cat([self._x[number][index[image == number]] @ self._x[number].T for number in images])

    def among(self, index: Int64[Tensor, "B R"]) -> Pairs:
        """Return the pairs of some tokens of each image."""
        rows = index + self._images[:, None] * self.count
        if self.matrix is None:
            return Pairs(self._x.flatten(0, 1)[rows])
        some = self.matrix.flatten(0, 1)[rows]
        return Pairs.of(some.gather(2, index[:, None].expand(-1, index.shape[1], -1)))

    def topk(self, number: int) -> tuple[Float32[Tensor, "B N K"], Int64[Tensor, "B N K"]]:
        """Return the highest values of each token and the tokens that they belong to. Not for distances."""
        values = self._x.new_empty(len(self._x), self.count, number)
        tokens = self._images.new_empty(values.shape)
        for rows in row_blocks(self.count, self.count, self._x):
            block = self._values(rows, slice(0, self.count)) if self.matrix is None else self.matrix[:, rows]
            values[:, rows], tokens[:, rows] = block.topk(number, dim=2)
        return values, tokens

    def highest(self, left: Int64[Tensor, "B F"], right: Int64[Tensor, "B S"]) -> Float32[Tensor, "B F"]:
        """Return the highest product of each token of one set with the tokens of another, computed anew."""
        shift = self._images[:, None] * self.count
        first, second = (self._x.flatten(0, 1)[index + shift] for index in (left, right))
        found = self._x.new_empty(left.shape)
        for rows in row_blocks(left.shape[1], right.shape[1], self._x):
            found[:, rows] = torch.bmm(first[:, rows], second.transpose(1, 2)).amax(dim=2)
        return found

    def blocks(self) -> Iterator[tuple[slice, slice, Float32[Tensor, "B R C"]]]:
        """Yield runs of rows and of columns, and the values of their pairs.

        Blocks of a matrix have all columns. Without a matrix, each pair of runs comes once: if the columns begin after
        the rows, the block stands for its transpose, too.
        """
        count = self.count
        if self.matrix is not None:
            for rows in row_blocks(count, count, self._x):
                yield rows, slice(0, count), self.matrix[:, rows]
            return
        runs = _runs(count, int((block_bytes(self._x) // _FLOAT32) ** 0.5))
        for number, rows in enumerate(runs):
            for columns in runs[number:]:
                yield rows, columns, self._values(rows, columns)

    def nearest(self, index: Int64[Tensor, "B M"]) -> Int64[Tensor, "B N"]:
        """Return which of some tokens is nearest to each token, as a number below M; the first of equal ones."""
        assert self._length is not None
        blocks = row_blocks(self.count, index.shape[1], self._x)
        if self.matrix is not None:
            columns = index[:, None]
            away = (self.matrix[:, rows].gather(2, columns.expand(-1, rows.stop - rows.start, -1)) for rows in blocks)
        else:
            chosen = self._x.flatten(0, 1)[index + self._images[:, None] * self.count].transpose(1, 2)
            length = self._length.gather(1, index)[:, None]
            away = (torch.baddbmm(length, self._x[:, rows], chosen, alpha=-2) for rows in blocks)
        found = self._images.new_empty(len(self._x), self.count)
        for rows, values in zip(blocks, away, strict=True):
            found[:, rows] = values.argmin(dim=2)
        return found

    def _all(self) -> Float32[Tensor, "B N N"]:
        images, count, _ = self._x.shape
        if not on_cpu(self._x):
            return self._values(slice(0, count), slice(0, count))
        # A CPU saves almost half of the products; an accelerator would rather launch one operation.
        matrix = self._x.new_empty(images, count, count)
        for rows in _runs(count, max(96, -(-count // _STRIPS))):
            behind = slice(rows.stop, count)
            matrix[:, rows, rows] = self._values(rows, rows)
            if rows.stop < count:
                values = self._values(rows, behind)
                matrix[:, rows, behind] = values
                matrix[:, behind, rows] = values.transpose(1, 2)
        return matrix

    def _values(self, rows: slice, columns: slice) -> Float32[Tensor, "B R C"]:
        values = torch.bmm(self._x[:, rows], self._x[:, columns].transpose(1, 2))
        if self._length is None:
            return values
        values.mul_(-2).add_(self._length[:, rows, None]).add_(self._length[:, None, columns]).clamp_(min=0)
        if rows == columns:
            # The product may round (i, j) and (j, i) differently.
            values.triu_(diagonal=1)
            values = values + values.transpose(1, 2)
        return values


def cosines(features: Float[Tensor, "B N D"], whole: int | None = None) -> Pairs:
    """Return the cosines of all pairs of tokens, in float32.

    Args:
        features: `(B, N, D)`, any float dtype.
        whole: the most tokens for a matrix.
    """
    return Pairs(unit_vectors(features.float()), whole=whole)


def _runs(count: int, step: int) -> list[slice]:
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]
