"""The benchmark of plans: the rules it compares with are the same rules, and it runs from end to end."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from foveate.methods import Agglomerative, CDPruner, Cluster, DivPrune, DpcKnn
from foveate.spec import parse
from foveate.tokens import VisualTokens

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def structured() -> ModuleType:
    return module_of(FOLDER / "as_structured.py")


@pytest.mark.parametrize("kept", [1, 7, 20])
def test_the_compared_rules_are_the_same(structured: ModuleType, kept: int) -> None:
    generator = torch.Generator().manual_seed(kept)
    features = torch.randn(1, 60, 32, generator=generator)
    text = torch.randn(1, 5, 32, generator=generator)
    given = VisualTokens.of(features, (6, 10), text=text)
    assert torch.equal(DivPrune(keep=kept).plan(given).slot[0], structured.divprune(features[0], kept))
    assert torch.equal(CDPruner(keep=kept).plan(given).slot[0], structured.cdpruner(features[0], text[0], kept))

    peaks = DpcKnn(keep=kept).plan(given)
    centre, means = structured.dpc_knn(features[0], kept)
    assert torch.equal(peaks.slot[0], centre.sort().values)
    torch.testing.assert_close(peaks.apply(features)[0], means[centre.argsort()])

    group = Agglomerative(keep=kept).plan(given).group
    assert group is not None
    label = structured.agglomerative(features[0], kept)
    assert torch.equal(group[0][:, None] == group[0], label[:, None] == label)

    ours = Cluster(keep=kept).plan(given).apply(features)[0]
    theirs = structured.cluster(features[0], kept)
    torch.testing.assert_close(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-4, rtol=0)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "plans.py"), "--decoder", "tiny", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "new" / "plans.json"
    sizes = ("--tokens", "36", "--widths", "32", "--images", "1,2", "--methods", "divprune,sparsevlm,visionzip")
    sizes = (*sizes, "--clips", "none")
    done = run(*sizes, "--clock", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [(row["method"], row["images"]) for row in result["rows"]] == [
        (name, images) for images in (1, 2) for name in ("divprune", "sparsevlm", "visionzip")
    ]
    assert all(row["ms"] > 0 and row["kept"] == 4 for row in result["rows"])
    assert set(result["prefill_ms"]) == {"36", "4"}
    assert "structured_ms" in result["rows"][0]
    assert [path.name for path in out.parent.iterdir()] == ["plans.json"]


def test_clips(tmp_path: Path) -> None:
    out = tmp_path / "plans.json"
    done = run(
        "--tokens",
        "36",
        "--widths",
        "32",
        "--images",
        "1",
        "--methods",
        "evs,fastvid",
        "--clips",
        "8x9",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["method"], row["tokens"], row["kept"], row["frames"]) for row in rows] == [
        ("evs", 72, 36, 8),
        ("fastvid", 72, 36, 8),
    ]
    assert "structured_ms" in rows[0]


def test_the_compared_rules_for_clips_are_the_same(structured: ModuleType) -> None:
    frames = torch.randn(8, 9, 32, generator=torch.Generator().manual_seed(0))
    given = VisualTokens.of(frames.view(1, 72, 32), (8, 3, 3))
    for name, rule in structured.CLIP_RULES.items():
        assert torch.equal(parse(f"{name}:36").steps[0].method.plan(given).slot[0], rule(frames, 36)), name


def test_what_it_cannot_do(tmp_path: Path) -> None:
    assert "divprune" in run("--methods", "divprun").stderr
    assert "--threads 1" in run("--clock", "cpu", "--threads", "2").stderr
