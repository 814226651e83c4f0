"""What a launcher tells a process is checked before any work."""

import pytest

from foveate.errors import FoveateError
from foveate.train.processes import check_process_variables, process_variable


def test_a_single_process_has_no_variables(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    check_process_variables()
    assert (process_variable("RANK"), process_variable("WORLD_SIZE")) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", " 2 ")
    check_process_variables()
    assert (process_variable("RANK"), process_variable("WORLD_SIZE")) == (1, 2)


@pytest.mark.parametrize("value", ["moon", "-2", "1.5", "9" * 30, "1_0", "0x1"])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_wrong_numbers(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(FoveateError, match=f"the environment variable {name} is"):
        check_process_variables()


def test_a_process_beyond_the_last(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FoveateError, match=r"process 2 \(RANK, from 0 on\) of 2"):
        check_process_variables()
