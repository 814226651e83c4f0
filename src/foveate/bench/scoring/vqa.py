"""Score answers against those of several people: VQA's soft accuracy."""

from __future__ import annotations

import re
from typing import Final

from foveate.bench.scoring.registry import Response, metric

__all__ = ["normal", "vqa"]

_NUMBER_WORDS: Final = "zero one two three four five six seven eight nine ten"
_DIGITS: Final = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES: Final = {"a", "an", "the"}
_MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
"""What is punctuation here; an apostrophe and a colon are not."""
_PERIOD: Final = re.compile(r"(?<!\d)\.|\.(?!\d)")
"""A full stop that is no decimal point."""
_APOSTROPHE: Final = re.compile(r"(?<=\w)['\u2019](?=\w)")


@metric("vqa", "VQA's soft accuracy: an answer that three people gave is right")
def vqa(response: Response) -> float:
    """Score how many people gave this answer, a third of a point each, at most 1; averaged over all but one of them.

    With answers a_1 to a_n: mean over i of min(1, |{j != i: a_j = prediction}| / 3), after `normal` (VQA, arXiv
    1505.00468, Section 4, and its published evaluation). A single answer is right or wrong.

    >>> ten = ("red",) * 3 + ("dark red",) * 7
    >>> [round(vqa(Response(said, ten)), 2) for said in ("Red.", "dark red", "blue")]
    [0.9, 1.0, 0.0]
    >>> round(vqa(Response("two", ("2", "3", "3", "3", "4", "4", "4", "5", "5", "5"))), 2)
    0.3
    """
    found, answers = normal(response.prediction), [normal(answer) for answer in response.answers]
    equal, count = answers.count(found), len(answers)
    if count == 1:
        return float(equal)
    return (equal * min(1.0, (equal - 1) / 3) + (count - equal) * min(1.0, equal / 3)) / count


def normal(text: str) -> str:
    """Return a text as VQA compares it.

    Lower case; no full stops except decimal points; numbers up to ten as digits; no articles; no other punctuation,
    which becomes a blank unless one is beside it or a comma stands between digits. Apostrophes inside words go, so that
    "dont" is "don't".

    >>> normal("The  Ten."), normal("Don't"), normal("1,000"), normal("3.5 m"), normal("half-full"), normal("a (b)")
    ('10', 'dont', '1000', '3.5 m', 'half full', 'b')
    """
    text = text.lower().replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,+(?=\d)", text) is not None
    for mark in _MARKS:
        alone = f"{mark} " in text or f" {mark}" in text or thousands
        text = text.replace(mark, "" if alone else " ")
    text = _APOSTROPHE.sub("", _PERIOD.sub("", text))
    words = (_DIGITS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)
