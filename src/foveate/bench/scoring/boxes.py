"""Score boxes by their overlap: intersection over union."""

from __future__ import annotations

import re
from typing import Final

from foveate.bench.scoring.registry import Response, metric
from foveate.errors import FoveateError

__all__ = ["box", "iou", "overlap", "read_box"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_NUMBER: Final = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)(?![\w])")


def _fits(asked: Response) -> None:
    for answer in asked.answers:
        if read_box(answer) is None:
            raise FoveateError(f'the answer "{answer[:40]}" is no box; write [[left, top, right, bottom]]')


@metric("iou", "the overlap of boxes: intersection over union", fits=_fits)
def iou(response: Response) -> float:
    """Score the intersection over union of the predicted box and the nearest right one.

    Both are four numbers, left, top, right, bottom, in one unit: that of the answers is the one that the prompt asks
    for. Whatever else stands around them, such as brackets or names, is left out. A prediction with more or fewer
    numbers is wrong.

    >>> iou(Response("[0, 0, 10, 10]", ("0 0 10 5",))), iou(Response("no box", ("0 0 10 5",)))
    (0.5, 0.0)
    """
    found = read_box(response.prediction)
    wanted = [box for box in map(read_box, response.answers) if box is not None]
    return 0.0 if found is None else max((overlap(found, each) for each in wanted), default=0.0)


@metric("box", "a box whose intersection with the right one is at least half of their union", fits=_fits)
def box(response: Response) -> float:
    """Score 1 if `iou` is at least 0.5, as referring expressions are scored.

    >>> box(Response('{"bbox_2d": [0, 0, 10, 10]}', ("0 0 10 6",))), box(Response("0 0 10 10", ("0 0 10 4",)))
    (1.0, 0.0)
    """
    return float(iou(response) >= 0.5)


def read_box(text: str) -> Box | None:
    """Return the four numbers of a text, corners in any order; None if there are more or fewer.

    >>> read_box("[[5, 1, 2, 3]]")
    (2.0, 1.0, 5.0, 3.0)
    """
    found = [float(each) for each in _NUMBER.findall(text)]
    if len(found) != 4:
        return None
    x, y, right, bottom = found
    return min(x, right), min(y, bottom), max(x, right), max(y, bottom)


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union; 0 where both are empty.

    >>> overlap((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)]
    union = sum(areas) - both
    return both / union if union else 0.0
