"""Score MME: two questions about each picture, one whose answer is yes and one whose answer is no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from foveate.bench.scoring.registry import Response, Scored, metric
from foveate.bench.scoring.yes_no import _fits, yes_no

__all__ = ["mme"]

_COGNITION: Final = frozenset({"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"})


def _totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return MME's totals: per skill, accuracy plus accuracy+, the share of pictures with both right, in percent.

    Skills of cognition are added up, and all others of perception (arXiv 2306.13394, Section 2.2).
    """
    skills: dict[str, dict[str, list[float]]] = {}
    for each in scored:
        skills.setdefault(each.skill or "", {}).setdefault(each.image, []).append(each.score)
    totals = {"perception": 0.0, "cognition": 0.0}
    for skill, pictures in skills.items():
        every = [score for own in pictures.values() for score in own]
        both = sum(min(own) == 1 for own in pictures.values()) / len(pictures)
        totals["cognition" if skill in _COGNITION else "perception"] += 100 * (sum(every) / len(every) + both)
    return totals


@metric("mme", "MME's accuracy: the first yes or no of the answer", fits=_fits, figures=_totals)
def mme(response: Response) -> float:
    """Score as `yes-no` does; tables have MME's totals of perception and cognition beside it.

    >>> mme(Response("Yes.", ("Yes",)))
    1.0
    """
    return yes_no(response)
