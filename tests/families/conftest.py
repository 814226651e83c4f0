import pytest
import torch
from rows import ROWS, Row


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


_models: dict[tuple[str, str], object] = {}


@pytest.fixture
def model(row: Row) -> object:
    """A shared model: tests that change weights or attributes make their own."""
    return shared(row, "sdpa")


@pytest.fixture(params=["sdpa", "eager"])
def any_model(row: Row, request: pytest.FixtureRequest) -> object:
    """A shared model, once under each attention implementation."""
    return shared(row, request.param)


def shared(row: Row, attention: str) -> object:
    if (row.name, attention) not in _models:
        _models[row.name, attention] = row.model(attention)
    return _models[row.name, attention]
