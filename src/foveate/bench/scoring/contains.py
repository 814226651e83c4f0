"""Score answers in which the right one must stand somewhere."""

from __future__ import annotations

from foveate.bench.scoring.registry import Response, metric

__all__ = ["contains"]


@metric("contains", "the right answer stands somewhere in the answer")
def contains(response: Response) -> float:
    """Score 1 if an answer stands in the prediction, in any case: how OCRBench is scored (arXiv 2305.07895).

    A prediction that lists everything is right, too: it measures reading, not answering.

    >>> contains(Response("The sign says EXIT.", ("exit",))), contains(Response("ex it", ("exit",)))
    (1.0, 0.0)
    """
    found = " ".join(response.prediction.lower().split())
    return float(any(" ".join(answer.lower().split()) in found for answer in response.answers))
