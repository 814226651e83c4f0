"""What methods say of their memory is what their plans hold."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from variants import spec_of, variants

from foveate.errors import FoveateError
from foveate.method import MANY, MOST_BYTES
from foveate.methods.arithmetic.products import Pairs
from foveate.spec import parse
from foveate.tokens import VisualTokens

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
NAMES = sorted({name for name, _ in variants(clips=True)})
SPECS = [spec_of(variant) for variant in variants() if variant[1]]
WIDTH = 256
SLACK = 200_000
"""Bytes that don't matter: a few numbers per token, and what Python itself makes."""


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


def near(row: dict[str, Any]) -> bool:
    """Whether a plan's memory is estimated within a fifth."""
    return row["estimate"] == pytest.approx(row["bytes"], rel=0.2, abs=SLACK)


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_near(memory: Any, name: str, in_full: bool) -> None:
    share = memory.KEPT.get(name, 1 / 9)
    with torch.inference_mode():
        rows = [
            memory.measure(name, f"{name}:{round(tokens * share)}", tokens, WIDTH)
            for tokens in ((1024, 4608) if in_full else (1024, 3072))
        ]
    assert all(map(near, rows)), rows


@pytest.mark.parametrize(("name", "number"), [("cdpruner", "8.9"), ("prumerge", "9.0"), ("fastvid", "8.6")])
def test_plans_above_two_gigabytes_are_refused_before_they_start(memory: Any, name: str, number: str) -> None:
    frames, kept = 64, 32_768
    grid = (frames, 32, 32) if name == "fastvid" else (256, 256)
    # One number that is repeated: the tokens themselves take no memory.
    features = torch.zeros(1, 1, 1).expand(1, 65_536, 1024)
    seen = VisualTokens.of(features, grid)
    most = memory.most_bytes(lambda: refused(f"{name}:{kept}", seen, f"{name}:{kept} would hold {number} GB at once"))
    assert most < 1e6
    assert parse(f"{name}:1024").steps[0].method.memory(65_536, 1024) < 2e9


def test_blocks_leave_nothing_behind(memory: Any) -> None:
    """Results of blocks that lie between them pin the memory of all blocks, 270 MB here, which no tensor has."""
    unit = torch.randn(1, 16_384, 4, generator=torch.Generator().manual_seed(0))
    first, second = torch.arange(16_384)[None].chunk(2, dim=1)
    with torch.inference_mode():
        Pairs(unit[:, :5000]).highest(first[:, :2048], first[:, 2048:4096])
        before = memory.grown()
        if before is None:
            pytest.skip("the system doesn't tell how much a process holds")
        Pairs(unit).highest(first, second)
        Pairs(unit, distances=True).nearest(first)
        assert memory.grown(before) < 1e8


def refused(spec: str, seen: VisualTokens, words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        parse(spec).steps[0].method.plan(seen)


def test_few_tokens_never_take_so_much() -> None:
    """So their memory isn't looked at."""
    for name in NAMES:
        method = parse(f"{name}:{MANY - 1}").steps[0].method
        assert method.memory(MANY - 1, 8192) < MOST_BYTES, name


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_estimates_of_all_options_are_near(memory: Any, spec: str, in_full: bool) -> None:
    """Or higher: an option can leave out work, and keys are narrower than features."""
    if not in_full:
        pytest.skip("defaults are enough for every change")
    with torch.inference_mode():
        row = memory.measure(spec.split(":")[0], spec.format(k=512), 4608, WIDTH)
    assert row["bytes"] <= 1.2 * row["estimate"] + SLACK, row
