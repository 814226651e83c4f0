"""Race candidates: each round asks all that are left more questions, and keeps fewer of them (successive halving).

Every round's questions are new, and every candidate that is left answers all of them, so differences to dense stay
paired and no question is asked twice. What decides is the saving that can be expected of a candidate: the time that it
saves, times the chance that what it loses is within the bound. Successive halving is from Karnin, Koren and Somekh,
Almost optimal exploration in multi-armed bandits (2013), and Jamieson and Talwalkar (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scipy.special import stdtr

from foveate.bench.configurations import DENSE, name_of
from foveate.bench.statistics import FEWEST_IMAGES, Interval, difference_interval, student_quantile

__all__ = ["CONFIDENT", "Answers", "Round", "Standing", "chance_within", "choice", "race", "rounds_of", "standings"]

CONFIDENT: Final = 0.9
"""The chance to be within the bound from which on a finalist may be chosen for its speed."""
FEWEST: Final = 4
"""Images that the first round has at least: an interval over three says next to nothing."""


@dataclass(frozen=True)
class Round:
    """One round of a race.

    Attributes:
        begin: the first image that it asks about.
        end: the image after the last one.
        stay: how many candidates are left after it.
    """

    begin: int
    end: int
    stay: int


@dataclass(frozen=True)
class Answers:
    """What a round's questions gave.

    Attributes:
        scores: by configuration, "dense" among them, the score of each question.
        images: the image of each question.
    """

    scores: Mapping[str, Sequence[float]]
    images: Sequence[Hashable]


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands after a round.

    Attributes:
        name: the spec.
        difference: its paired difference to dense over all questions so far.
        chance: that it loses no more than the bound.
        saving: the share of dense's time that it saves; below 0 if it is slower.
        stays: whether it is in the next round.
    """

    name: str
    difference: Interval
    chance: float
    saving: float
    stays: bool = False

    @property
    def expected(self) -> float:
        """The saving that can be expected: what is beyond the bound saves nothing."""
        return self.chance * max(0.0, self.saving)


def rounds_of(candidates: int, images: int, finalists: int) -> tuple[Round, ...]:
    """Divide images among rounds: all rounds up to one have as many as the one after it, which about halves the field.

    With few images there are fewer rounds, which leave more candidates out at once.

    Args:
        candidates: how many there are at first.
        images: to ask about.
        finalists: how many are left at the end.

    >>> [(each.end - each.begin, each.stay) for each in rounds_of(48, 64, 6)]
    [(16, 24), (16, 12), (32, 6)]
    >>> rounds_of(3, 10, 6)
    (Round(begin=0, end=10, stay=3),)
    """
    if candidates <= finalists:
        return (Round(0, images, candidates),)
    wanted = math.ceil(math.log2(candidates / finalists))
    possible = 1 + max(0, math.floor(math.log2(images / FEWEST)))
    number = min(wanted, possible)
    ends = [round(images / 2 ** (number - each)) for each in range(1, number + 1)]
    stay = [
        max(finalists, math.ceil(candidates * (finalists / candidates) ** (each / number) - 1e-9))
        for each in range(1, number + 1)
    ]
    return tuple(Round(begin, end, left) for begin, end, left in zip([0, *ends], ends, stay))


def chance_within(
    scores: Sequence[float], reference: Sequence[float], images: Sequence[Hashable], max_drop: float
) -> tuple[Interval, float]:
    """Return the paired difference to a reference, and the chance that it is a drop of no more than the bound.

    The chance is that of Student's t around the middle of the difference's own interval, with the interval's own width;
    one half without an interval.

    >>> same, chance = chance_within([1, 0] * 50, [1, 0] * 50, range(100), 0.05)
    >>> same.value, round(chance, 3)
    (0.0, 0.999)
    >>> round(chance_within([0, 0] * 50, [1, 0] * 50, range(100), 0.05)[1], 3)
    0.0
    """
    found = difference_interval(scores, reference, images)
    if found.low is None or found.high is None:
        return found, 0.5
    degrees = max(FEWEST_IMAGES, len(set(images))) - 1
    middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
    if not half:
        return found, float(middle >= -max_drop)
    return found, float(stdtr(degrees, (middle + max_drop) / half * student_quantile(0.975, degrees)))


def standings(
    names: Sequence[str],
    scores: Mapping[str, Sequence[float]],
    images: Sequence[Hashable],
    seconds: Mapping[str, float],
    max_drop: float,
    stay: int,
) -> tuple[Standing, ...]:
    """Order candidates by the saving that can be expected of them, and say which of them stay.

    The one that is most surely within the bound always stays, so that a search for speed doesn't end without it.

    Args:
        names: the candidates.
        scores: of all configurations, "dense" among them.
        images: of the questions.
        seconds: of a call, by configuration.
        max_drop: the bound.
        stay: how many stay.

    >>> scores = {"dense": [1] * 40, "a": [1] * 40, "b": [0] * 40, "c": [1] * 40}
    >>> seconds = {"dense": 1.0, "a": 0.5, "b": 0.1, "c": 0.9}
    >>> [each.name for each in standings(["a", "b", "c"], scores, range(40), seconds, 0.05, 1) if each.stays]
    ['a']
    """
    dense = name_of(DENSE)
    found = []
    for name in names:
        difference, chance = chance_within(scores[name], scores[dense], images, max_drop)
        found.append(Standing(name, difference, chance, 1 - seconds[name] / seconds[dense]))
    ordered = sorted(found, key=lambda each: (-each.expected, -each.chance, -each.saving))
    surest = max(ordered, key=lambda each: (each.chance, each.saving))
    staying = {each.name for each in ordered[:stay]}
    if surest.name not in staying:
        staying = {each.name for each in ordered[: stay - 1]} | {surest.name}
    return tuple(
        Standing(each.name, each.difference, each.chance, each.saving, each.name in staying) for each in ordered
    )


def race(
    names: Sequence[str],
    seconds: Mapping[str, float],
    rounds: Sequence[Round],
    max_drop: float,
    ask: Callable[[int, Sequence[str]], Answers],
) -> list[tuple[Standing, ...]]:
    """Run all rounds.

    Args:
        names: the candidates.
        seconds: of a call, by configuration, "dense" among them.
        rounds: as `rounds_of` makes them.
        max_drop: how much of the accuracy may be lost: 0.01 is one point.
        ask: asks the questions of a round, by its number from 0, under these configurations and dense.

    Returns:
        Per round, where each of its candidates stands after it, the best first.
    """
    every = (name_of(DENSE), *names)
    scores: dict[str, list[float]] = {name: [] for name in every}
    images: list[Hashable] = []
    left, history = list(names), []
    for number, each in enumerate(rounds):
        answers = ask(number, left)
        for name in (name_of(DENSE), *left):
            scores[name] += answers.scores[name]
        images += answers.images
        history.append(standings(left, scores, images, seconds, max_drop, each.stay))
        staying = {standing.name for standing in history[-1] if standing.stays}
        # The order of candidates stays that of the search, so that each round's folder has a settled name.
        left = [name for name in left if name in staying]
    return history


def choice(finalists: Sequence[Standing], ratios: Mapping[str, float]) -> Standing:
    """Choose the fastest of those that are within the bound with a good chance; if none is, the surest.

    The race bets on what may save much. The choice doesn't: of many that were tried, one that looks just good enough
    has probably been lucky.

    Args:
        finalists: where they stand after the last round.
        ratios: of their times to that of dense.
    """
    sure = [each for each in finalists if each.chance >= CONFIDENT]
    if sure:
        return min(sure, key=lambda each: (ratios[each.name], -each.chance))
    return max(finalists, key=lambda each: (each.chance, -ratios[each.name]))
