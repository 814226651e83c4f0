"""The benchmark of whole calls runs, goes on where it ended, and says what is wrong before it measures."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from foveate.engine import timing
from foveate.methods import method_class, method_names
from foveate.transformers_api import cache_of_output

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    # What a run sets, it sets for its whole process.
    monkeypatch.setattr(timing, "clock", timing.clock)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return importlib.import_module("speed")


@pytest.fixture
def run(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    out = tmp_path / "new" / "speed.json"

    def measured(*words: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["speed.py", "--threads", "1", "--out", str(out), *map(str, words)])
        assert speed.main() == 0
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        return json.loads(out.read_text())

    return measured


SMALL = ("--clock", "cpu", "--rounds", 1, "--specs", "stride:0.25 resize:0.25 pool:0.5@1")


def test_a_small_run(run: Any) -> None:
    found = run(*SMALL, "--models", "tiny,tiny-qwen", "--tokens", "64,2x36", "--batch", "1,2")
    assert len(found["cells"]) == 2 * 2 * 2
    for cell in found["cells"]:
        dense, stride, resize, inside = cell["rows"]
        tokens = cell["tokens"]
        assert [row["kept"] for row in cell["rows"]] == [tokens, tokens // 4, tokens // 4, tokens // 2]
        assert dense["compressor"] == 0 < stride["compressor"]
        assert stride["kv_bytes"] == resize["kv_bytes"] < inside["kv_bytes"] < dense["kv_bytes"]
        assert dense["peak_bytes"] > dense["kv_bytes"]
        assert stride["ideal_prefill"] > 0
        assert "ideal_prefill" not in inside
        assert "ideal_prefill" not in dense
        assert min(cell["maps"].values()) > 0
        for row in cell["rows"]:
            assert min(row[part] for part in ("encoder", "prefill", "per_token")) > 0
            assert row["first_token"] > row["encoder"] + row["prefill"]


def test_it_goes_on(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(*SMALL, "--models", "tiny", "--tokens", "36")
    assert run(*SMALL, "--models", "tiny", "--tokens", "36,64", "--within", -1)["cells"] == first["cells"]
    assert "1 left, run this again" in capsys.readouterr().err
    more = run(*SMALL, "--models", "tiny", "--tokens", "36,64")
    assert more["cells"][:1] == first["cells"]
    assert [cell["pictures"] for cell in more["cells"]] == ["36", "64"]
    with pytest.raises(SystemExit, match="measured with another clock"):
        run("--models", "tiny", "--clock", "wall")


def test_shared_weights_are_as_many_layers(speed: ModuleType) -> None:
    made = importlib.import_module("random_models")
    for name in ("tiny", "tiny-qwen"):
        alone, shared = (
            made.make(name, made.Pictures(1, 36), "cpu", torch.float32, share).eval() for share in (False, True)
        )
        assert len(made.decoder_layers(shared)) == len(made.decoder_layers(alone)) == 3
        assert len(made.encoder_layers(shared)) == len(made.encoder_layers(alone)) == 3
        (first, *_, last) = made.decoder_layers(shared)
        assert last.mlp.up_proj.weight is first.mlp.up_proj.weight
        assert [layer.self_attn.layer_idx for layer in made.decoder_layers(shared)] == [0, 1, 2]
        inputs = made.prompt(shared, made.Pictures(1, 36), 1, 5)
        assert cache_of_output(shared(**inputs, use_cache=True)).get_seq_length() == 41


def images_methods() -> list[str]:
    """The methods with a rule of their own for images, sorted."""
    same = importlib.import_module("every_method").SAME_ON_IMAGES
    return [name for name in method_names() if not method_class(name).temporal and name not in same]


def test_every_method_has_a_spec(speed: ModuleType) -> None:
    specs = importlib.import_module("every_method").every(24, 0.111)
    assert [spec.partition(":")[0].partition("@")[0] for spec in specs] == images_methods()
    assert "pyramiddrop:0.481@6,12,18" in specs


def test_the_page_answers_for_every_method() -> None:
    page = (FOLDER.parent / "docs" / "faster.md").read_text()
    for name in images_methods():
        assert f"`{name}" in page, f"{name} has no answer: python benchmarks/speed.py --specs every"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tokens", "65"), "65 is no square of tokens"),
        (("--tokens", "0x64"), "0x64 is no square"),
        (("--tokens", "many"), "--tokens"),
        (("--models", "llava-2"), "no model is called llava-2"),
        (("--batch", "0"), "--batch must be 1 or more"),
        (("--new-tokens", "1"), "--new-tokens must be 2 or more"),
        (("--specs", "clustre:4"), 'no method is called "clustre"'),
        *([] if torch.cuda.is_available() else [(("--device", "cuda"), "this machine has no CUDA device")]),
        (("--clock", "cpu", "--threads", "2"), "use it on the CPU with --threads 1"),
    ],
)
def test_bad_input(
    speed: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
