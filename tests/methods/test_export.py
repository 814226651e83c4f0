"""Plans with a fixed count go through `torch.export` and `torch.compile(fullgraph=True)`, for any content.

In a process of its own: what checks shapes in annotations while tests run can't be recorded.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from given import tokens
from variants import variants

from foveate.methods import method_class
from foveate.spec import parse
from foveate.tokens import Signals, VisualTokens

GRID, KEPT = (6, 6), 5
NAMES = sorted({name for name, _ in variants() if not parse(f"{name}:{KEPT}").steps[0].method.ragged})
SPECS = [f"{name}:{KEPT}" for name in NAMES] + [f"cluster:{KEPT}:start=plusplus", f"pool:{KEPT}:remainder=drop"]


class Planned(torch.nn.Module):
    """Features and signals in, features of kept tokens and their slots out."""

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.method = parse(spec).steps[0].method
        self.layout = tokens(GRID).layout

    def forward(self, features: torch.Tensor, *signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.method.plan(VisualTokens(features, self.layout, Signals(dict(zip(self.method.needs, signals)))))
        return plan.apply(features), plan.slot


def wrong(spec: str, way: str) -> str:
    """Say what is wrong with a recorded plan; nothing if it does for other images what the plan itself does."""
    module = Planned(spec)
    given = tokens(GRID)
    inputs = (given.features, *(given.signals[signal] for signal in module.method.needs))
    others = tuple(each.flip(0) if each.dtype == torch.bool else each.flip(-1) for each in inputs)
    torch._dynamo.reset()
    try:
        if way == "export":
            made = torch.export.export(module, inputs, strict=False).module()
        else:
            made = torch.compile(module, fullgraph=True, backend=way)
        for asked in (inputs, others):
            features, slot = made(*asked)
            expected, places = module(*asked)
            if not torch.equal(slot, places):
                return "other tokens are kept"
            torch.testing.assert_close(features, expected)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return ""


def found(specs: list[str], way: str) -> dict[str, str]:
    """What is wrong with some specs, asked in another process."""
    done = subprocess.run(
        [sys.executable, __file__, way, *specs],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_clusters_and_trees_of_merges_are_recorded() -> None:
    """Those whose rounds depend on the content; the others are in the slow test."""
    assert found([f"cluster:{KEPT}:iterations=2", f"agglomerative:{KEPT}", f"random:{KEPT}"], "export") == {}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["export", "eager"])
def test_every_plan_with_a_fixed_count_is_recorded(way: str, in_full: bool) -> None:
    if way == "eager" and not in_full:
        pytest.skip("what can be exported is recorded; `nox -s full` runs both ways")
    assert len(SPECS) > 20
    assert all(method_class(name) for name in NAMES)
    assert found(SPECS, way) == {}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({spec: text for spec in sys.argv[2:] if (text := wrong(spec, sys.argv[1]))}))
