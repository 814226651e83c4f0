"""Specs as rows of bytes beside pixels, without vLLM."""

import pytest

from foveate.errors import FoveateError
from foveate.vllm_plugin.spec_rows import LENGTH, read_row, written_row


def test_a_spec_comes_back_from_its_row() -> None:
    for spec in ("dense", "cluster:64", 'atp:adapter="Stück"', "x" * LENGTH):
        assert read_row(written_row(spec)) == spec
    with pytest.raises(FoveateError, match=f"write one of {LENGTH} or fewer"):
        written_row("x" * (LENGTH + 1))
