import torch

from foveate.schedule.resizing import dense_slots, nearest_below
from foveate.tokens import Layout, Segment


def grid(h: int, w: int) -> Layout:
    return Layout((Segment(1, h, w),))


def test_slots_of_a_smaller_grid() -> None:
    assert dense_slots(grid(2, 2), grid(4, 4)).tolist() == [5, 7, 13, 15]
    assert dense_slots(grid(3, 3), grid(3, 3)).tolist() == list(range(9))
    for h in range(1, 8):
        for w in range(1, 6):
            slots = dense_slots(grid(h, w), grid(7, 5))
            assert len(slots.unique()) == h * w
            assert torch.equal(slots.sort().values, slots)


def test_every_place_has_a_token() -> None:
    assert nearest_below(grid(1, 2), grid(2, 3)).tolist() == [0, 0, 0, 0, 0, 1]
