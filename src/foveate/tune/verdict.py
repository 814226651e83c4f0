"""Judge on held-out questions what a search has chosen: is it within the bound, and can that be told?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, Literal

from foveate.bench.comparing import questions_needed
from foveate.bench.formatting import direction, points, points_text

__all__ = ["Judgement", "fewest_images", "judged", "needed", "sentences", "shown_by"]

Judgement = Literal["within", "beyond", "unclear"]
"""Of a drop: within the bound, or beyond it, with 95 % confidence; or the interval has the bound inside."""

_ONE_IN_TWENTY: Final = 0.05


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


def needed(scores: Sequence[float], reference: Sequence[float], images: Sequence[Hashable], max_drop: float) -> int:
    """Return how many questions like these tell that nothing is lost, to the bound, with a power of 80 %.

    Where no answer changes, as many as rule out a drop then, with as many of them about each image.

    >>> needed([1, 0] * 50, [1, 1] * 50, range(100), 0.05)
    793
    >>> needed([1, 1] * 50, [1, 1] * 50, range(100), 0.05)
    59
    """
    by_changes = questions_needed(scores, reference, images, max_drop)
    if by_changes is not None:
        return by_changes
    return math.ceil(fewest_images(max_drop) * len(scores) / len(set(images)))


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
    ratio = f"a call takes {row['time_ratio']:.2f} of the time of dense, {_how(result)}"
    found: list[str] = []
    if row["judgement"] == "within" and row["time_ratio"] < 1:
        found.append(f"Use {chosen['spec']}: it {lost}, so it loses at most the {allowed}, and {ratio}.")
    elif row["judgement"] == "within":
        found.append(f"Nothing is faster: {chosen['spec']} loses at most the {allowed}, and {ratio}.")
    elif row["judgement"] == "unclear":
        found.append(
            f"There are too few questions to tell: {chosen['spec']} {lost}, and the bound is {bound} points. About "
            f"{chosen['needed']:,} held-out questions like these would tell if it loses nothing. It is the best guess: "
            f"{ratio}."
        )
    else:
        hopeless = chosen["chance"] < _ONE_IN_TWENTY
        verdict = "Nothing is good enough" if hopeless else "What the search has chosen fails on held-out questions"
        found.append(f"{verdict}: {chosen['spec']} {lost}, clearly more than the {allowed}.")
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
