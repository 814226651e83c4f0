"""Score answers that are read from a picture by how few letters are wrong: ANLS."""

from __future__ import annotations

from foveate.bench.scoring.registry import Response, metric

__all__ = ["anls", "edits"]


@metric("anls", "ANLS: one less the share of wrong letters, 0 from one half on")
def anls(response: Response) -> float:
    """Score 1 - d / max(|prediction|, |answer|) for the nearest answer, with the edit distance d; below 1/2, 0.

    Both are compared in lower case and with single blanks (Average Normalized Levenshtein Similarity, arXiv 1905.13648,
    Equation 1 with the threshold 0.5; DocVQA, arXiv 2007.00398).

    >>> anls(Response("Los Angles", ("new york", "Los Angeles"))), anls(Response("paris", ("london",)))
    (0.9090909090909091, 0.0)
    """
    found = " ".join(response.prediction.lower().split())
    best = 0.0
    for answer in response.answers:
        wanted = " ".join(answer.lower().split())
        longest = max(len(found), len(wanted))
        best = max(best, 1.0 if not longest else 1 - edits(found, wanted) / longest)
    return best if best >= 0.5 else 0.0


def edits(one: str, other: str) -> int:
    """Return the Levenshtein distance: how many letters to put in, take out or change.

    >>> edits("kitten", "sitting"), edits("", "abc")
    (3, 3)
    """
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(other, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != wanted))
    return row[-1]
