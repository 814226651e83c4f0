"""What is said of a choice on held-out questions."""

from typing import Any

import numpy as np
import pytest

from foveate.bench.front import front
from foveate.bench.statistics import difference_interval
from foveate.tune.verdict import fewest_images, judged, needed, sentences


def row(spec: str, value: float, half: float, ratio: float, bound: float = 0.05, **others: Any) -> dict[str, Any]:
    difference = {"value": value, "low": value - half, "high": value + half}
    others["accuracy"] = {"value": 0.8 + value}
    judgement = "within" if spec == "dense" else judged(difference, bound)
    return {
        "spec": spec,
        "difference": difference,
        "judgement": judgement,
        "time_ratio": ratio,
        "against": {},
        **others,
    }


def result(*rows: dict[str, Any], chosen: str = "a", chance: float = 0.9, needed: int = 900) -> dict[str, Any]:
    return {
        "max_drop": 0.05,
        "held_out": {"images": 100, "questions": 250},
        "device": {"title": "NVIDIA H100"},
        "where": "float32 on cpu",
        "measured": False,
        "chosen": {"spec": chosen, "chance": chance, "needed": needed},
        "rows": [row("dense", 0.0, 0.0, 1.0), *rows],
    }


def test_a_choice_that_is_shown_to_be_good() -> None:
    (said,) = sentences(result(row("a", -0.01, 0.02, 0.4)))
    assert said == (
        "Use a: it differs from dense by -1.0 points (-3.0 to +1.0) on 250 held-out questions about 100 images, so it "
        "loses at most the 5.0 points that are allowed. A call takes 0.40 of the time of dense, predicted for "
        "NVIDIA H100."
    )


def test_a_winner_of_the_search_that_fails_on_held_out_questions() -> None:
    first, *others = sentences(result(row("a", -0.12, 0.03, 0.4), row("b", 0.0, 0.02, 0.7), row("c", 0.0, 0.02, 1.2)))
    assert first.startswith(
        "What the search has chosen fails on held-out questions: a differs from dense by -12.0 points"
    )
    assert others == [
        "On these questions b is within the bound, but the search had not chosen so; ask other questions before you "
        "rely on that."
    ]


def test_nothing_is_good_enough() -> None:
    (said,) = sentences(result(row("a", -0.3, 0.05, 0.4), chance=0.001))
    assert said.startswith("Nothing is good enough: a differs")


def test_too_few_questions_to_tell() -> None:
    (said,) = sentences(result(row("a", -0.01, 0.09, 0.4), needed=1234))
    assert said.startswith("There are too few questions to tell: a differs from dense by -1.0 points (-10.0 to +8.0)")
    assert "The drop looks smaller than the 5.0 points that are allowed; about 1,234 held-out questions" in said
    assert "The drop looks larger than" in sentences(result(row("a", -0.06, 0.09, 0.4)))[0]


def test_a_choice_of_which_the_search_was_not_sure() -> None:
    _, said = sentences(result(row("a", -0.01, 0.02, 0.4), chance=0.7))
    assert said == (
        "No finalist had a chance of 90% to be within the bound after the search; a was the surest, with 70%."
    )


def test_a_dense_model_that_answers_nothing() -> None:
    found = result(row("a", 0.0, 0.01, 0.4))
    found["rows"][0]["accuracy"] = {"value": 0.02}
    first, second = sentences(found)
    assert first.startswith("The dense model answers 2.0% right, so nothing can lose more than the 5.0 points")
    assert second.startswith("Use a")


def test_nothing_is_faster() -> None:
    (said,) = sentences(result(row("a", 0.0, 0.01, 1.3)))
    assert said.startswith("Nothing is faster: a loses at most")


def test_what_it_gains_on_baselines() -> None:
    against = {
        "random:64": {"value": 0.2, "low": 0.1, "high": 0.3},
        "stride:64": {"value": 0.01, "low": -0.1, "high": 0.1},
    }
    *_, differs, above = sentences(result(row("a", 0.0, 0.01, 0.4, against=against)))
    assert differs == (
        "a less each baseline with the same tokens: random:64 +20.0 points (+10.0 to +30.0); stride:64 +1.0 points "
        "(-10.0 to +10.0)."
    )
    assert above == "It is clearly above random:64 alone."


def test_the_front_has_nothing_that_something_else_beats() -> None:
    rng = np.random.default_rng(0)
    points = {str(n): (float(time), float(accuracy)) for n, (time, accuracy) in enumerate(rng.random((200, 2)))}
    found = front(points)
    for name, (time, accuracy) in points.items():
        beaten = any(t <= time and a >= accuracy and (t, a) != (time, accuracy) for t, a in points.values())
        assert (name in found) != beaten
    assert front({"a": (1, 1), "b": (1, 1)}) == ("a",)


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.2])
def test_so_many_images_can_tell_and_one_less_cant(bound: float) -> None:
    """As `foveate bench` counts: where no answer changes, the interval ends at the bound."""
    images = fewest_images(bound)
    for number, can in ((images, True), (images - 1, False)):
        found = difference_interval([1.0] * number, [1.0] * number, range(number)).to_dict()
        assert (judged(found, bound) == "within") == can


def test_as_many_questions_as_are_needed_tell_with_the_power_that_is_said() -> None:
    """Simulated: a spec that loses nothing, though a tenth of its answers change, is found to in about 80 % of runs."""
    rng = np.random.default_rng(0)

    def draw(number: int) -> tuple[list[float], list[float]]:
        dense = rng.random(number) < 0.8
        swapped = rng.random(number) < 0.1
        return np.where(swapped, rng.random(number) < 0.8, dense).astype(float).tolist(), dense.astype(float).tolist()

    own, dense = draw(400)
    found = {**difference_interval(own, dense, range(400)).to_dict(), "changed": 1}
    number = needed(found, {"questions": 400, "images": 400}, 0.05)
    told = 0
    for _ in range(200):
        own, dense = draw(number)
        told += judged(difference_interval(own, dense, range(number)).to_dict(), 0.05) == "within"
    assert 0.65 < told / 200 < 0.95, (number, told)


def test_where_no_answer_changes_images_are_counted() -> None:
    found = difference_interval([1.0] * 30, [1.0] * 30, [n // 3 for n in range(30)]).to_dict()
    asked = {"questions": 30, "images": 10}
    assert needed({**found, "changed": 0}, asked, 0.05) == fewest_images(0.05) * 3


@pytest.mark.parametrize("changes", [1, 3, 10])
def test_what_could_not_be_told_needs_more(changes: int) -> None:
    """However few answers change: the number belongs to the interval that judges."""
    dense = [1.0] * 100 + [0.0] * 100
    own = [0.0] * changes + dense[changes:-changes] + [1.0] * changes
    for images in (200, 20):
        found = difference_interval(own, dense, [n % images for n in range(200)]).to_dict()
        asked = {"questions": 200, "images": images}
        if judged(found, 0.01) == "unclear":
            assert needed({**found, "changed": 2 * changes}, asked, 0.01) > 200
