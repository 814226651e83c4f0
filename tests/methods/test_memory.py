"""What methods say of their memory is what their plans hold."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from given import tokens
from variants import spec_of, variants

from foveate.methods.arithmetic import products
from foveate.spec import parse

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
SPECS = list(dict.fromkeys(spec_of(variant) for variant in variants() if not variant[1] and variant[0] != "atp"))
SLACK = 100_000
"""Bytes that don't matter: a few numbers per token."""


@pytest.fixture(scope="module")
def memory() -> Any:
    """The benchmark of memory, which measures."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("memory_of_plans", FOLDER / "memory.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_measure_counts_what_is_alive_at_once(memory: Any) -> None:
    def three_of_which_two_live() -> None:
        x = torch.zeros(1000, 1000)
        y = x + 1
        del x
        y.view(-1)[:10] = 2
        y.mul(3)

    assert memory.most_bytes(three_of_which_two_live) == pytest.approx(8e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("grid", "kept", "width"), [((48, 60), 320, 64), ((48, 60), 320, 512)])
def test_estimates_are_near(
    memory: Any, spec: str, grid: tuple[int, int], kept: int, width: int, in_full: bool
) -> None:
    if width > 64 and not in_full:
        pytest.skip("one width is enough for every change")
    method = parse(spec.format(k=kept)).steps[0].method
    seen = tokens(grid, images=1, width=width)
    count = grid[0] * grid[1]
    with torch.inference_mode():
        given = (seen.features, *(seen.signals[need] for need in method.needs))
        most = memory.most_bytes(lambda: method.plan(seen), *given)
    if method.name == "agglomerative" and count > products.WHOLE:
        # SciPy copies the distances where neither torch nor NumPy sees it; with fewer tokens, a matrix is as large.
        most += 4 * count**2
    assert method.memory(count, width) == pytest.approx(most, rel=0.2, abs=SLACK)
