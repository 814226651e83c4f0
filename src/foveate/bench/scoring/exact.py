"""Score answers that must be the right one and nothing else."""

from __future__ import annotations

import string
from typing import Final

from foveate.bench.scoring.registry import Response, metric

__all__ = ["exact", "plain", "plainly"]

_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


@metric("exact", "the answer itself, in any case")
def exact(response: Response) -> float:
    """Score 1 if the prediction is one of the answers, in lower case and with single blanks.

    >>> exact(Response(" Dark  Red ", ("dark red",))), exact(Response("dark red.", ("dark red",)))
    (1.0, 0.0)
    """
    found = " ".join(response.prediction.lower().split())
    return float(any(" ".join(answer.lower().split()) == found for answer in response.answers))


@metric("plain", "the answer itself, in any case and without punctuation")
def plain(response: Response) -> float:
    """Score 1 if the prediction is one of the answers, both in lower case and without the punctuation of ASCII.

    This is how GQA is scored, and lmms-eval's `exact_match` with `ignore_case` and `ignore_punctuation`.

    >>> plain(Response("Dark red.", ("dark red",))), plain(Response("it is dark red", ("dark red",)))
    (1.0, 0.0)
    """
    found = plainly(response.prediction)
    return float(any(plainly(answer) == found for answer in response.answers))


def plainly(text: str) -> str:
    """Return a text in lower case, without punctuation, and with single blanks."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())
