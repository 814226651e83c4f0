"""The benchmark of VoCo tokens runs at a small size, its intervals are right, and the page shows its result."""

import gc
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return importlib.import_module("voco")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generators.voco")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked for by peft
def test_training_rivals_answers_and_times(
    bench: ModuleType, page: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_full: bool
) -> None:
    if not in_full:
        pytest.skip("it trains eleven models; `nox -s full` runs it")
    out = tmp_path / "voco.json"
    words = ["--steps", "1", "--scenes", "4", "--questions", "12", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    words += ["--further", "1", "--clips", "2"]
    words += ["--parts", "press", "pool", "qformer", "longer", "distil", "clips", "answers", "times"]

    def measured() -> dict:
        monkeypatch.setattr(sys, "argv", ["voco.py", *words])
        assert bench.main() == 0
        return json.loads(out.read_text())

    found = measured()
    rows = {row["what"]: row for row in found["rows"]}
    pressed = [f"press:{count}" for count in (1, 2, 4, 8, 32)]
    further = [f"{name}:{count}" for name in ("plain", "distil") for count in (1, 2, 4, 8, 32)]
    dense = ["dense:dense", "dense:left", "dense:none"]
    longer = [name.replace("press", "press-longer") for name in pressed]
    assert list(rows) == [
        *dense,
        "untrained",
        *pressed,
        "pool",
        "qformer",
        *longer,
        "pool-longer",
        "qformer-longer",
        *further,
    ]
    assert {"over_pool", "over_qformer"} <= rows["press-longer:1"].keys()
    assert found["longer"]["recipe"]["voco"]["adapter"] == "press"
    assert "after its first 1 steps" in page.measured_part(found)
    assert "over_plain" in rows["distil:8"]
    assert [row["tokens"] for row in found["clips"]["rows"]] == [1, 2, 4, 8, 32]
    assert "| in order | shuffled | difference |" in page.measured_part(found)
    assert rows["dense:dense"]["accuracy"]["value"] > 0.8
    assert {"retention", "ratio", "over_pool", "over_qformer"} <= rows["press:1"].keys()
    sizes = found["times"]["bytes"]
    assert sizes["dense"] == 576 * sizes["1"] == 18 * sizes["32"] == 576 * 12 * 3 * 64 * 2 * 4
    # The dense model answers as it does in its own evaluation.
    from recipes.reference.evaluate import right_answers

    from foveate.scenes import test_set

    answers = importlib.import_module("voco_answers")
    own = right_answers(answers.embedded_model(), list(test_set(12)))
    kept = json.loads((tmp_path / "runs" / "answers-dense.json").read_text())["dense"]
    assert [int(each) for one in own for each in one] == kept
    # What is there is not made again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    again = measured()
    assert again["environment"]["packages"] == found["environment"]["packages"]
    # The time at which a run ends and the load of the machine change.
    assert {**again, "environment": None} == {**found, "environment": None}
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_answers_with_its_lora_weights(bench: ModuleType, tmp_path: Path) -> None:
    import peft

    from foveate.voco import VoCo

    answers = importlib.import_module("voco_answers")
    model = answers.embedded_model()
    voco = VoCo(model, 1)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=r".*language_model.*q_proj"))
    voco.save_pretrained(tmp_path / "voco", lora=tuned)
    configuration = answers.voco_configuration(tmp_path / "voco")
    gc.collect()
    hooked = [name for name, module in configuration.model.named_modules() if module._forward_hooks]
    assert len(hooked) == 12
    assert all("language_model" in name and name.endswith("q_proj") for name in hooked)
    configuration.adapters.close()
    assert not any(module._forward_hooks for module in configuration.model.modules())


def test_retention_is_measured_between_the_bounds(bench: ModuleType) -> None:
    owners = [f"scene {number // 4}" for number in range(40)]
    upper, lower, right = [1] * 40, [1, 0, 0, 0] * 10, [1, 1, 0, 0] * 10
    found = bench.retention(right, upper, lower, owners)
    assert found["retention"] == {"value": pytest.approx(1 / 3, abs=1e-4), "low": 0.3333, "high": 0.3333}
    assert found["ratio"]["value"] == 0.5
    mixed = bench.retention([1, 1, 1, 1] * 5 + [1, 0, 0, 0] * 5, upper, lower, owners)["retention"]
    assert mixed["value"] == 0.5
    assert mixed["low"] < 0.3 < 0.7 < mixed["high"]


def test_the_page_shows_what_was_measured(page: ModuleType) -> None:
    found = json.loads((ROOT / "docs" / "measured" / "voco.json").read_text())
    assert page.measured_part(found) in (ROOT / "docs" / "voco.md").read_text(), "run python docs/make.py voco"
