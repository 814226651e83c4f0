"""Ask only what down-sampling fails: the questions that tell methods apart.

Many questions of benchmarks are answered as well from a small picture. VTC-Bench (arXiv 2510.07143) takes down-sampling
as a filter: a question is hard at a budget if the model answers it, and doesn't when it sees the picture at so few
pixels. This is our reading of that paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Split", "split"]


@dataclass(frozen=True)
class Split:
    """The numbers of questions of two groups.

    Attributes:
        hard: the dense model is right, the down-sampled one isn't.
        easy: the down-sampled one is right.
    """

    hard: tuple[int, ...]
    easy: tuple[int, ...]


def split(dense: Sequence[float], resized: Sequence[float]) -> Split:
    """Return which questions are hard and which are easy; those that the dense model fails, too, are neither.

    Args:
        dense: the score of each question under the dense model; 1 is right.
        resized: the same under `resize`.

    >>> split([1, 1, 0, 0], [1, 0, 0, 1])
    Split(hard=(1,), easy=(0, 3))
    """
    pairs = list(enumerate(zip(dense, resized, strict=True)))
    return Split(
        tuple(number for number, (whole, small) in pairs if whole == 1 and small < 1),
        tuple(number for number, (_, small) in pairs if small == 1),
    )
