"""Judge on held-out questions what a search has chosen: is it within the bound, and can that be told?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from scipy.special import ndtri

from foveate.bench.formatting import direction, points, points_text
from foveate.tune.race import CONFIDENT

__all__ = ["Judgement", "fewest_images", "judged", "needed", "sentences", "shown_by"]

Judgement = Literal["within", "beyond", "unclear"]
"""Of a drop: within the bound, or beyond it, with 95 % confidence; or the interval has the bound inside."""

_ONE_IN_TWENTY: Final = 0.05
_POWER: Final = 0.8


def judged(difference: Mapping[str, Any], max_drop: float) -> Judgement:
    """Judge a difference to dense by its 95 % interval.

    >>> judged({"value": -0.004, "low": -0.009, "high": 0.002}, 0.01)
    'within'
    >>> judged({"value": -0.004, "low": -0.03, "high": 0.02}, 0.01), judged({"value": -0.1, "low": None}, 0.01)
    ('unclear', 'unclear')
    """
    if difference["low"] is None:
        return "unclear"
    return "within" if difference["low"] >= -max_drop else "beyond" if difference["high"] < -max_drop else "unclear"


def shown_by(images: int) -> float:
    """Return the drop that so many images can't rule out where no answer changes (the rule of three).

    >>> round(shown_by(59), 3), round(shown_by(8), 3)
    (0.05, 0.312)
    """
    return 1 - _ONE_IN_TWENTY ** (1 / images)


def fewest_images(max_drop: float) -> int:
    """Return how many images rule out a drop of this size where no answer changes.

    >>> fewest_images(0.01), fewest_images(0.05)
    (299, 59)
    """
    return math.ceil(math.log(_ONE_IN_TWENTY) / math.log(1 - max_drop))


def needed(difference: Mapping[str, Any], asked: Mapping[str, int], max_drop: float) -> int:
    """Return how many questions like these tell that nothing is lost, to the bound, with a power of 80 %.

    The interval narrows with the root of their number. Where no answer changes, as many as rule out a drop then.

    Args:
        difference: of a spec to dense.
        asked: how many "questions" about how many "images" gave it.
        max_drop: the bound.

    >>> found = {"value": -0.005, "low": -0.051, "high": 0.042, "changed": 3}
    >>> needed(found, {"questions": 200, "images": 20}, 0.05)
    354
    >>> needed({**found, "changed": 0}, {"questions": 200, "images": 20}, 0.05)
    590
    """
    if not difference["changed"]:
        return math.ceil(fewest_images(max_drop) * asked["questions"] / asked["images"])
    half = (difference["high"] - difference["low"]) / 2
    errors = (ndtri(0.975) + ndtri(_POWER)) / ndtri(0.975)
    return math.ceil(asked["questions"] * float(errors * half / max_drop) ** 2)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Say what a search has found, in a few sentences.

    Args:
        result: what `tune.json` holds.
    """
    chosen = result["chosen"]
    rows = {row["spec"]: row for row in result["rows"]}
    row, part, bound = rows[chosen["spec"]], result["held_out"], points(result["max_drop"]).lstrip("+")
    asked = f"on {part['questions']:,} held-out questions about {part['images']:,} images"
    lost = f"differs from dense by {points_text(row['difference'])} {asked}"
    allowed = f"{bound} points that are allowed"
    ratio = f"A call takes {row['time_ratio']:.2f} of the time of dense, {_how(result)}"
    found: list[str] = []
    if row["judgement"] == "within" and row["time_ratio"] < 1:
        found.append(f"Use {chosen['spec']}: it {lost}, so it loses at most the {allowed}. {ratio}.")
    elif row["judgement"] == "within":
        found.append(f"Nothing is faster: {chosen['spec']} loses at most the {allowed}. {ratio}.")
    elif row["judgement"] == "unclear":
        looks = "smaller" if row["difference"]["value"] >= -result["max_drop"] else "larger"
        found.append(
            f"There are too few questions to tell: {chosen['spec']} {lost}. The drop looks {looks} than the {allowed}; "
            f"about {chosen['needed']:,} held-out questions like these would tell, if it loses nothing. {ratio}."
        )
    else:
        hopeless = chosen["chance"] < _ONE_IN_TWENTY
        verdict = "Nothing is good enough" if hopeless else "What the search has chosen fails on held-out questions"
        found.append(f"{verdict}: {chosen['spec']} {lost}, clearly more than the {allowed}.")
    right = rows["dense"]["accuracy"]["value"]
    if right <= result["max_drop"]:
        found.insert(
            0,
            f"The dense model answers {right:.1%} right, so nothing can lose more than the {allowed}: look at its "
            "answers, and at --prompt and --score.",
        )
    if _ONE_IN_TWENTY <= chosen["chance"] < CONFIDENT:
        found.append(
            f"No finalist had a chance of {CONFIDENT:.0%} to be within the bound after the search; {chosen['spec']} "
            f"was the surest, with {chosen['chance']:.0%}."
        )
    others = [
        each["spec"]
        for each in result["rows"]
        if each["judgement"] == "within"
        and each["spec"] not in (chosen["spec"], "dense")
        and each["time_ratio"] < (row["time_ratio"] if row["judgement"] == "within" else 1)
    ]
    if others:
        faster = "faster and " if row["judgement"] == "within" else ""
        found.append(
            f"On these questions {', '.join(others)} {'is' if len(others) == 1 else 'are'} {faster}within the bound, "
            "but the search had not chosen so; ask other questions before you rely on that."
        )
    if row["against"]:
        each = [f"{name} {points_text(difference)}" for name, difference in row["against"].items()]
        found.append(f"{chosen['spec']} less each baseline with the same tokens: {'; '.join(each)}.")
        ahead = [name for name, difference in row["against"].items() if direction(difference) > 0]
        if len(ahead) < len(row["against"]):
            found.append(
                "It is clearly above none of them." if not ahead else f"It is clearly above {', '.join(ahead)} alone."
            )
    return found


def _how(result: Mapping[str, Any]) -> str:
    if result["measured"]:
        return f"measured on {result['where']}"
    return f"predicted for {result['device']['title']}"
