import pytest
import torch

from foveate.engine.caches import cache_state, set_cache_state
from foveate.engine.state import CacheState, LayerState
from foveate.errors import FoveateError


def first() -> LayerState:
    return LayerState(0, torch.tensor([[0, 2, 5], [-1, 4, 5]]), following=torch.tensor([6, 2]), padded=True)


def state() -> CacheState:
    deeper = LayerState(2, torch.tensor([[5], [5]]), following=torch.tensor([6, 2]), padded=False)
    return CacheState(full_length=6, layers=(first(), deeper))


def test_mask() -> None:
    whole = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]])
    assert first().mask(whole, 6, 2).tolist() == [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert first().mask(None, 6, 2).tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_grown() -> None:
    assert first().extended(6, 2).tolist() == [[0, 2, 5, 6, 7], [-1, 4, 5, 6, 7]]
    more = torch.tensor([[0, 3], [-1, 1]])
    assert first().extended(6, 2, more).tolist() == [[0, 2, 5, 6, 7, 8, 11], [-1, 4, 5, 6, 7, -1, 9]]


def test_layers() -> None:
    assert [state().at(layer).length for layer in range(4)] == [3, 3, 1, 1]


def test_rows() -> None:
    twice = state().rows(4)
    assert twice.first.columns.tolist() == [[0, 2, 5], [0, 2, 5], [-1, 4, 5], [-1, 4, 5]]
    assert twice.at(3).columns.tolist() == [[5], [5], [5], [5]]
    assert twice.first.following.tolist() == [6, 6, 2, 2]
    with pytest.raises(FoveateError, match="3 rows"):
        state().rows(3)


def test_an_emptied_cache_forgets() -> None:
    class Lengths:
        def get_seq_length(self) -> int:
            return length

    length = 3
    cache = Lengths()
    assert cache_state(cache) is None
    assert cache_state(None) is None
    set_cache_state(cache, state())
    assert cache_state(cache) is not None
    length = 0
    assert cache_state(cache) is None
    length = 3
    assert cache_state(cache) is None
