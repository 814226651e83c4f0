"""Score numbers that are read off a chart: 5 % beside is right."""

from __future__ import annotations

import re
from typing import Final

from foveate.bench.scoring.registry import Response, metric

__all__ = ["relaxed"]

_MOST: Final = 0.05
_NUMBER: Final = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@metric("relaxed", "relaxed accuracy: a number up to 5 % beside the right one, or the answer itself")
def relaxed(response: Response) -> float:
    """Score 1 if the prediction is a number within 5 % of an answer that is one, or else the answer in any case.

    ChartQA, arXiv 2203.10244, Section 5.1. "40 %" is 0.4 on either side; commas between thousands and a full stop at
    the end don't count. An answer of 0 wants 0.

    >>> [relaxed(Response(said, ("14",))) for said in ("14.5", "14.8", "14 apples", "14.")]
    [1.0, 0.0, 0.0, 1.0]
    >>> relaxed(Response("Yes", ("yes",))), relaxed(Response("1,020", ("1000",))), relaxed(Response("0.4", ("40%",)))
    (1.0, 1.0, 1.0)
    """
    return float(any(_right(response.prediction, answer) for answer in response.answers))


def _right(prediction: str, answer: str) -> bool:
    found, wanted = _value(prediction), _value(answer)
    if found is not None and wanted is not None:
        return abs(found - wanted) <= _MOST * abs(wanted)
    return " ".join(prediction.lower().split()).rstrip(".") == " ".join(answer.lower().split()).rstrip(".")


def _value(text: str) -> float | None:
    """Return a text that is a number, or a percentage, as a number."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip().rstrip("."))
    share = text.endswith("%")
    text = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(text):
        return None
    return float(text) / 100 if share else float(text)
