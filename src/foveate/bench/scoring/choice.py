"""Score multiple choice: the letter of the right option, or its text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from foveate.bench.scoring.exact import plainly
from foveate.bench.scoring.registry import Response, Scored, metric
from foveate.errors import FoveateError

__all__ = ["choice", "chosen", "lettered"]


def _fits(asked: Response) -> None:
    for answer in asked.answers:
        if asked.choices and _index(answer, asked.choices) is None:
            raise FoveateError(f'the answer "{answer[:40]}" is no option and no letter of one')
        if not asked.choices and _index(answer, asked.choices) is None:
            raise FoveateError(f'it has no choices, and the answer "{answer[:40]}" is no letter; give the options')


def _all_turns(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the share of questions that are right in every order of their options, where orders change.

    MMBench asks each question several times with its options turned (arXiv 2307.06281, Section 4.3).
    """
    groups: dict[tuple[str, str, frozenset[str]], list[float]] = {}
    for each in scored:
        options = each.response.choices
        asked = each.response.question.rsplit("\n", len(options))[0]
        groups.setdefault((each.image, asked, frozenset(options)), []).append(each.score)
    if max(map(len, groups.values())) < 2 or not all(each.response.choices for each in scored):
        return {}
    return {"right in every order": sum(min(own) == 1 for own in groups.values()) / len(groups)}


@metric("choice", "multiple choice: the letter of the right option, or its text", fits=_fits, figures=_all_turns)
def choice(response: Response) -> float:
    """Score 1 if the prediction chooses the right option.

    An answer is the option's letter or its text; without `choices`, the letter. What `chosen` can't read is wrong.

    >>> pets = ("cat", "dog", "a red bird")
    >>> [choice(Response(said, ("B",), choices=pets)) for said in ("B", "(b) dog", "The answer is B.", "dog", "A")]
    [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    found = chosen(response.prediction, response.choices)
    return float(found is not None and any(_index(answer, response.choices) == found for answer in response.answers))


def chosen(prediction: str, choices: Sequence[str] = ()) -> int | None:
    """Return the number of the option that a prediction chooses, from 0; None if it chooses none, or nobody can tell.

    In this order: the text of an option; a letter alone or before a sign; a letter after "answer" or "option"; a text
    in which exactly one option stands as whole words. "A" before a word is an article.

    >>> pets = ("cat", "dog", "a red bird")
    >>> [chosen(said, pets) for said in ("a red bird", "C. a red bird", "A dog", "cat or dog", "D")]
    [2, 2, 1, None, None]
    """
    said, texts = plainly(prediction), [plainly(each) for each in choices]
    if said in texts:
        return texts.index(said)
    letters = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    text = prediction.strip()
    alone = re.match(r"\(?([A-Za-z])(?:[).:,]|\s*$|\s*\n)", text)
    named = re.search(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!')", text, re.IGNORECASE)
    for found in (alone, named):
        if found is not None and found[1].upper() in letters:
            return letters.index(found[1].upper())
    inside = [number for number, each in enumerate(texts) if each and re.search(rf"\b{re.escape(each)}\b", said)]
    return inside[0] if len(inside) == 1 else None


def lettered(question: str, choices: Sequence[str]) -> str:
    """Write a question with its options below it, each after its letter.

    >>> print(lettered("What is it?", ["a cat", "a dog"]))
    What is it?
    A. a cat
    B. a dog
    """
    return "\n".join([question, *(f"{letter}. {each}" for letter, each in zip(ascii_uppercase, choices, strict=False))])


def _index(answer: str, choices: Sequence[str]) -> int | None:
    """Return the number of the option that a right answer names."""
    texts = [plainly(each) for each in choices]
    if plainly(answer) in texts:
        return texts.index(plainly(answer))
    letter = answer.strip().strip("().").upper()
    letters = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    return letters.index(letter) if len(letter) == 1 and letter in letters else None
