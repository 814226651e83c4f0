"""Score yes and no, with precision and recall of yes: how POPE is scored."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.bench.scoring.registry import Response, Scored, metric
from foveate.errors import FoveateError

__all__ = ["said", "yes_no"]


def said(text: str) -> str | None:
    """Return whether a text says yes or no, by its first word that is one of them; None if it says neither.

    >>> said("Yes, there is a dog."), said("There is no dog."), said("maybe")
    ('yes', 'no', None)
    """
    found = re.search(r"\b(yes|no)\b", text.lower())
    return None if found is None else found[1]


def _fits(asked: Response) -> None:
    for answer in asked.answers:
        if said(answer) is None or len(answer.split()) > 1:
            raise FoveateError(f'the answer "{answer[:40]}" is neither yes nor no')


def precision_and_recall(scored: Sequence[Scored]) -> dict[str, float]:
    """Return precision, recall and F1 of "yes", and the share of it (POPE, arXiv 2305.10355, Section 3).

    What says neither counts as no "yes"; without any "yes", precision is 0.

    >>> rows = [Scored(Response(text, (right,)), 0) for text, right in (("yes", "yes"), ("yes", "no"), ("no", "yes"))]
    >>> precision_and_recall(rows)
    {'precision': 0.5, 'recall': 0.5, 'F1': 0.5, 'yes': 0.6666666666666666}
    """
    found = [said(each.response.prediction) == "yes" for each in scored]
    right = [said(each.response.answers[0]) == "yes" for each in scored]
    both = sum(one and other for one, other in zip(found, right, strict=True))
    precision = both / sum(found) if any(found) else 0.0
    recall = both / sum(right) if any(right) else 0.0
    mean = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "F1": mean, "yes": sum(found) / len(found)}


@metric("yes-no", "the first yes or no of the answer", fits=_fits, figures=precision_and_recall)
def yes_no(response: Response) -> float:
    """Score 1 if the first yes or no of the prediction is the right one; a prediction without either is wrong.

    >>> [yes_no(Response(text, ("no",))) for text in ("No.", "no, there is not", "yes", "not at all")]
    [1.0, 1.0, 0.0, 0.0]
    """
    return float(said(response.prediction) == said(response.answers[0]))
