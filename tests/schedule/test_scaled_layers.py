"""Layers that papers give for a decoder of 32 layers, in decoders of other depths."""

import pytest

from foveate.methods import method_class
from foveate.schedule import scaled_layer, scaled_layers
from foveate.train.timetable import published


@pytest.mark.parametrize(
    ("layer", "depth", "expected"),
    [(2, 40, 3), (6, 40, 8), (15, 40, 19), (16, 40, 20), (2, 8, 1), (2, 24, 2), (4, 12, 2), (20, 12, 8), (31, 32, 31)],
)
def test_halves_are_rounded_up(layer: int, depth: int, expected: int) -> None:
    assert scaled_layer(layer, depth) == expected


def test_a_decoder_of_40_layers_has_one_answer_everywhere() -> None:
    assert [method_class(name).layers for name in ("fastv", "pyramiddrop")] == [(2,), (8, 16, 24)]
    assert scaled_layers((2,), 40) == [3]
    assert scaled_layers((8, 16, 24), 40) == [10, 20, 30]
    assert published("two-compression", 40)[0].spec == "pool:0.125@3"


def test_layers_stay_apart_and_within_the_decoder() -> None:
    assert scaled_layers((3, 7, 16), 6) == [1, 2, 3]
    assert scaled_layers((8, 16, 24), 2) == [1]
    assert scaled_layers((2,), 1) == []
