"""Listening to a method that is not `forward`."""

import gc
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch import nn

from foveate.engine.hooks import on_call


class Adder(nn.Module):
    def add(self, one: int, other: int = 2) -> int:
        return one + other


def test_listeners_go_in_any_order() -> None:
    adder = Adder()
    first: list[Any] = []
    second: list[Any] = []
    one, two = on_call(adder, "add", before=first.append), on_call(adder, "add", after=second.append)
    assert list(inspect.signature(adder.add).parameters) == ["one", "other"]
    adder.add(1)
    one.remove()
    adder.add(2)
    two.remove()
    assert "add" not in vars(adder)
    assert adder.add(3) == 5
    assert (first, second) == ([{"one": 1}], [3, 4])
    assert "add" not in vars(Adder())


def test_threads() -> None:
    adder = Adder()

    def listen(number: int) -> list[Any]:
        seen: list[Any] = []
        handle = on_call(adder, "add", before=seen.append)
        for _ in range(50):
            assert adder.add(number, other=number) == 2 * number
        handle.remove()
        return [each for each in seen if each["one"] == number]

    with ThreadPoolExecutor(4) as pool:
        assert [len(seen) for seen in pool.map(listen, range(16))] == [50] * 16
    assert "add" not in vars(adder)


def test_errors_pass() -> None:
    adder = Adder()
    handle = on_call(adder, "add", before=lambda _: None)
    with pytest.raises(TypeError, match="concatenate"):
        adder.add("a")  # type: ignore[arg-type]
    handle.remove()


def test_a_module_that_is_listened_to_can_be_freed() -> None:
    adder = Adder()
    handle = on_call(adder, "add", before=lambda _: None)
    gone = weakref.ref(adder)
    del adder
    gc.collect()
    assert gone() is None
    handle.remove()


def test_a_method_of_the_modules_own_comes_back() -> None:
    adder = Adder()
    mine = lambda one: one * 10  # noqa: E731
    vars(adder)["add"] = mine
    seen: list[Any] = []
    handle = on_call(adder, "add", before=seen.append)
    assert adder.add(4) == 40
    handle.remove()
    assert vars(adder)["add"] is mine
    assert seen == [{"one": 4}]
