"""The arithmetic of columns, without a model: small cases with every number written out."""

import numpy as np
import torch

from foveate.engine.columns import Closing, Columns, PackedRun, gather_columns, pack_positions, standing_for


def columns() -> Columns:
    return Columns(
        index=torch.tensor([[0, 1, 2, 3], [-1, 0, 1, 2]]),
        lengths=[4, 3],
        restore=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]]),
        positions=torch.tensor([[[0, 1, 2, 3], [0, 0, 1, 2]]]),
        following=torch.tensor([4, 3]),
    )


def test_gaps_close_and_rows_end_together() -> None:
    closing = Closing.of(np.array([[True, False, False, True], [False, True, True, True]]))
    assert closing.lengths.tolist() == [2, 3]
    assert closing.source.tolist() == [[3, 0, 3], [5, 6, 7]]
    assert closing.real.tolist() == [[False, True, True], [True, True, True]]
    # A dropped column lands where the kept one before it does.
    assert closing.landing.tolist() == [[1, 1, 1, 2], [-1, 0, 1, 2]]


def test_columns_follow_what_a_step_leaves() -> None:
    closing = Closing.of(np.array([[True, False, False, True], [False, True, True, True]]))
    index, real = torch.from_numpy(closing.source), torch.from_numpy(closing.real)
    landing = torch.from_numpy(closing.landing.clip(min=0))
    left = columns().taken(index, real, landing, closing.lengths.tolist())
    assert left.index.tolist() == [[-1, 0, 3], [0, 1, 2]]
    assert left.restore.tolist() == [[1, 1, 1, 2], [0, 1, 2, 2]]
    assert left.positions[0].tolist() == [[3, 0, 3], [0, 1, 2]]
    assert left.source is not None
    assert left.source.tolist() == [[3, 0, 3], [5, 6, 7]]
    assert left.padded
    assert left.occupied().tolist() == [[False, True, True], [True, True, True]]


def test_packing_closes_the_gaps_of_positions() -> None:
    # The first row holds an image of 4 positions in 2 places; the second one is gone, and moved what followed by 3.
    before = columns()
    before.positions[0, 0] = torch.tensor([0, 1, 4, 5])
    before.following[0] = 6
    image = PackedRun(0, np.array([1, 2]), span=4, begin=torch.tensor(1))
    gone = PackedRun(1, np.array([], dtype=np.int64), span=3, begin=None, end=2)
    packed, (first, second) = pack_positions(before, [image, gone])
    assert packed.positions[0].tolist() == [[0, 1, 2, 3], [0, 0, -2, -1]]
    assert packed.following.tolist() == [4, 0]
    assert packed.packed
    assert (first.span, second.span) == (2, 0)


def test_a_dropped_column_takes_the_hidden_state_of_the_kept_one_before_it() -> None:
    keep = torch.tensor([[True, False, True, True], [False, True, False, True]])
    placed = torch.tensor([[0, 2, 3], [-1, 1, 3]])
    restore = torch.from_numpy(standing_for(placed.numpy(), keep.numpy()))
    assert restore.tolist() == [[0, 0, 1, 2], [0, 1, 1, 2]]
    hidden = torch.tensor([[[10.0], [12.0], [13.0]], [[0.0], [21.0], [23.0]]])
    assert gather_columns(hidden, restore)[..., 0].tolist() == [[10, 10, 12, 13], [0, 21, 21, 23]]
