import pytest
import torch
from rows import ROWS, Row
from versions import BEAMS_OF_SEVERAL_IMAGES

from sample_families import is_in_share, share_asked_for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the refusal of beams of several images for models that mix these up in every version."""
    refused = dict(BEAMS_OF_SEVERAL_IMAGES.kwargs)
    for item in items:
        callspec = getattr(item, "callspec", None)
        row = None if callspec is None else callspec.params.get("row")
        if getattr(row, "mixes_images", False):
            marks = [mark for mark in item.iter_markers("xfail") if mark.kwargs.get("reason") == refused["reason"]]
            if marks:
                item.add_marker(pytest.mark.xfail(True, **refused))


@pytest.hookimpl(tryfirst=True)  # pytest itself would make tests of all of the fixture's families
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make only the tests on families of this share of the sample: most would be collected just to be dropped."""
    share = share_asked_for(metafunc.config)
    marked = {name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")}
    if share is None or "row" not in metafunc.fixturenames or "row" in marked or hasattr(metafunc.module, "row"):
        return
    rows = [row for row in ROWS if is_in_share(row.name, metafunc.function.__name__, share)]
    if rows:
        metafunc.parametrize("row", rows, ids=[row.name for row in rows])


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
