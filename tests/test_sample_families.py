"""The sample of the contract suite covers every test and every family, and is the same each time."""

from itertools import product
from types import SimpleNamespace
from typing import Any

from rows import ROWS

from sample_families import WHOLE, sample


class Item(SimpleNamespace):
    """As much of a collected test as the sample looks at."""

    __hash__ = object.__hash__


def item(test: str, family: str | None, number: int, slow: bool = False) -> Any:
    row = {} if family is None else {"row": next(row for row in ROWS if row.name == family)}
    mark = SimpleNamespace(name="slow") if slow else None
    return Item(
        path="test_x.py",
        originalname=test,
        name=f"{test}[{number}]",
        callspec=SimpleNamespace(params={"spec": number} | row),
        get_closest_marker=lambda name: mark,
    )


def test_the_sample() -> None:
    families = [row.name for row in ROWS]
    tests = ["test_a", "test_b", "test_c"]
    items = [
        item(test, family, number, slow=number == 0) for test, family, number in product(tests, families, range(4))
    ]
    alone = [item("test_alone", None, number) for number in range(4)]
    kept, dropped = sample([*items, *alone])
    assert len(kept) + len(dropped) == len(items) + len(alone)
    assert set(alone) <= set(kept)
    for test, family in product(tests, families):
        ours = [each for each in kept if each.originalname == test and each.callspec.params["row"].name == family]
        assert len(ours) == (4 if family in WHOLE else 1)
        assert family in WHOLE or ours[0].get_closest_marker("slow") is None
    # Which parameters are chosen differs from family to family.
    rest = [each for each in kept if "row" in each.callspec.params and each.callspec.params["row"].name not in WHOLE]
    assert len({each.callspec.params["spec"] for each in rest}) == 3
    assert sample([*items, *alone]) == (kept, dropped)
    # The shares part the sample, about in halves; tests without a family are in both. Of the second whole family, each
    # has one set of parameters per test.
    halves = [sample([*items, *alone], (number, 2))[0] for number in (1, 2)]
    left = {each for each in kept if each not in halves[0] and each not in halves[1]}
    assert {each.callspec.params["row"].name for each in left} == set(WHOLE[1:])
    assert len(left) == 3 * len(tests) * len(WHOLE[1:])
    assert set(halves[0]) & set(halves[1]) == set(alone)
    assert min(map(len, halves)) > len(kept) / 3
    assert set(families) >= set(WHOLE)
