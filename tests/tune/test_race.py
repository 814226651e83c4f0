"""The race on made-up answers: what is best is found, and what was answered before an interruption counts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from foveate.bench.statistics import Interval, difference_interval
from foveate.tune.race import Answers, Round, Standing, chance_within, choice, race, rounds_of, standings

SECONDS = {
    "dense": 1.0,
    "safe": 0.8,
    "best": 0.4,
    "cheap": 0.2,
    "slow": 1.1,
    **{f"weak-{n}": 0.3 + 0.02 * n for n in range(12)},
}
LOSS = {"dense": 0.0, "safe": 0.0, "best": 0.0, "cheap": 0.3, "slow": 0.0, **{f"weak-{n}": 0.2 for n in range(12)}}
"""The share of the right answers that a spec loses."""


def answers(names: Sequence[str], each: Round, seed: int = 0) -> Answers:
    """Two questions about each image; right answers are lost at random, the same ones whenever they are asked for."""
    numbers = range(2 * each.begin, 2 * each.end)
    drawn = {name: np.random.default_rng([seed, *name.encode()]).random(100_000) for name in names}
    right = np.random.default_rng(seed).random(100_000) < 0.9
    scores = {name: [float(right[n] and drawn[name][n] >= LOSS[name]) for n in numbers] for name in names}
    return Answers(scores, [n // 2 for n in numbers])


def run(images: int = 256, max_drop: float = 0.05, seed: int = 0) -> tuple[list[Any], list[tuple[int, list[str]]]]:
    names = [name for name in SECONDS if name != "dense"]
    rounds, asked = rounds_of(len(names), images, 4), []

    def ask(number: int, left: Sequence[str]) -> Answers:
        asked.append((number, list(left)))
        return answers(["dense", *left], rounds[number], seed)

    return race(names, SECONDS, rounds, max_drop, ask), asked


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_spec_within_the_bound_wins(seed: int) -> None:
    history, _ = run(seed=seed)
    assert history[-1][0].name == "best"
    assert {"best", "safe"} <= {each.name for each in history[-1] if each.stays}
    assert history[-1][0].chance > 0.95


def test_a_tighter_clock_changes_the_winner() -> None:
    """What takes longer than dense never wins, however accurate it is."""
    history, _ = run()
    assert {each.name: each.expected for each in history[0]}["slow"] == 0


def test_no_question_is_asked_twice_and_each_round_halves_the_field() -> None:
    history, asked = run()
    assert [len(left) for _, left in asked] == [16, 8]
    assert [len(table) for table in history] == [16, 8]
    rounds = rounds_of(16, 256, 4)
    assert [(each.begin, each.end) for each in rounds] == [(0, 128), (128, 256)]
    assert all(set(later[1]) < set(earlier[1]) for earlier, later in pairwise(asked))


def test_what_was_asked_before_counts_in_later_rounds() -> None:
    history, _ = run()
    rounds = rounds_of(16, 256, 4)
    parts = [answers(["dense", "best"], each) for each in rounds]
    scores = {name: [*parts[0].scores[name], *parts[1].scores[name]] for name in ("dense", "best")}
    images = [(number, image) for number, part in enumerate(parts) for image in part.images]
    whole = difference_interval(scores["best"], scores["dense"], images)
    assert next(each for each in history[-1] if each.name == "best").difference == whole


def test_the_surest_stays_though_others_are_faster() -> None:
    right = [1.0] * 60
    scores = {"dense": right, "sure": right, **{f"fast-{n}": [1.0] * 59 + [0.0] for n in range(4)}}
    seconds = {"dense": 1.0, "sure": 0.99, **{f"fast-{n}": 0.1 for n in range(4)}}
    table = standings([name for name in scores if name != "dense"], scores, range(60), seconds, 0.02, 2)
    assert {each.name for each in table if each.stays} == {"sure", "fast-0"}


@pytest.mark.parametrize(
    ("candidates", "images"), [(100, 4), (100, 7), (100, 25), (7, 1000), (6, 10), (1, 4), (250, 9)]
)
def test_rounds_use_every_image_once_and_end_with_the_finalists(candidates: int, images: int) -> None:
    rounds = rounds_of(candidates, images, 6)
    assert [each.begin for each in rounds] == [0, *(each.end for each in rounds[:-1])]
    assert rounds[-1].end == images
    assert rounds[-1].stay == min(candidates, 6)
    assert all(each.end > each.begin for each in rounds)
    assert rounds[0].end >= 4
    assert [each.stay for each in rounds] == sorted((each.stay for each in rounds), reverse=True)


def test_the_chance_grows_with_the_bound_and_is_one_half_without_an_interval() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random(200) < 0.9).astype(float).tolist()
    spec = (rng.random(200) < 0.85).astype(float).tolist()
    chances = [chance_within(spec, dense, range(200), bound)[1] for bound in (0.001, 0.02, 0.05, 0.2, 0.9)]
    assert chances == sorted(chances)
    assert chances[-1] > 0.999
    assert chance_within([1, 0], [1, 1], [0, 1], 0.1)[1] == 0.5


def test_the_chance_is_that_of_the_interval() -> None:
    """A bound at the interval's lower end leaves 2.5 % beyond it."""
    rng = np.random.default_rng(1)
    dense = (rng.random(300) < 0.9).astype(float).tolist()
    spec = (rng.random(300) < 0.8).astype(float).tolist()
    found = difference_interval(spec, dense, range(300))
    assert found.low is not None
    assert chance_within(spec, dense, range(300), -found.low)[1] == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("chances", "chosen"),
    [
        ({"cheap": 0.6, "middle": 0.92, "safe": 0.99}, "middle"),
        ({"cheap": 0.95, "middle": 0.92, "safe": 0.99}, "cheap"),
        ({"cheap": 0.6, "middle": 0.7, "safe": 0.8}, "safe"),
        ({"cheap": 0.0, "middle": 0.0, "safe": 0.0}, "cheap"),
    ],
)
def test_what_looks_just_good_enough_is_not_chosen(chances: dict[str, float], chosen: str) -> None:
    ratios = {"cheap": 0.2, "middle": 0.5, "safe": 0.9}
    finalists = [Standing(name, Interval(0, None, None), chance, 1 - ratios[name]) for name, chance in chances.items()]
    assert choice(finalists, ratios).name == chosen
