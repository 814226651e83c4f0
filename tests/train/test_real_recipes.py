"""Recipes for released models: each is estimated from a configuration alone, and trains a tiny model of its kind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from directories import save
from PIL import Image
from rows import ROWS
from safetensors.torch import load_file
from shards import sharded, told, unsharded
from typer.testing import CliRunner

from foveate.commands import app
from foveate.errors import FoveateError
from foveate.loading import load
from foveate.train.objectives import parse_recipe
from foveate.train.recipe import Data
from foveate.train.settings import read_mapping
from foveate.train.sources import conversations

ROOT = Path(__file__).parents[2]
MODELS = {"llava-1.5-7b": "llava", "qwen2.5-vl-3b": "qwen2_5_vl"}
RECIPES = sorted(path for model in MODELS for path in (ROOT / "recipes" / model).glob("*.yaml"))
PAGE = (ROOT / "docs" / "recipes.md").read_text()
STORED = {"llava": torch.float16, "qwen2_5_vl": torch.bfloat16}
"""What the files of the real models hold."""
SAMPLE = ("llava-1.5-7b/llavolta-lora", "qwen2.5-vl-3b/voco")
"""What is trained each time; `nox -s train` trains all of them."""


PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # its own


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def estimated(path: Path, *options: str) -> Any:
    done = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@PEFT
@pytest.mark.usefixtures("_no_hub")
@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_configuration_is_enough_for_a_dry_run(path: Path) -> None:
    pytest.importorskip("peft")
    many = "Eight cards" in path.read_text()
    found = estimated(path, "--device", "a100", "--processes", "8" if many else "1")
    assert (found["processes"], found["device"]) == (8 if many else 1, "a100")
    assert found["sharded"] == read_mapping(path).get("shards", False)
    assert found["conversations"] == 665_298
    assert sum(stage["steps"] for stage in found["stages"]) in (5198, 10396)
    row = re.search(rf"^\| `{name(path)}\.yaml` \| .* \| (\d) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert row is not None
    largest = max(stage["memory"] for stage in found["stages"])
    assert largest < 80e9
    assert [int(number) for number in row.groups()] == [
        8 if many else 1,
        round(largest / 1e9),
        round(found["hours"] / 0.4),
    ]
    assert len([line for line in found["warnings"] if "foveate cost has" in line or "data: expected" in line]) == 2


@pytest.mark.usefixtures("_no_hub")
def test_figures_of_the_estimate() -> None:
    """By hand: 6.76 billion trained weights in eight shards of 16 bytes; and a third at three settings of LLaVolta."""
    path = ROOT / "recipes" / "llava-1.5-7b" / "llavolta.yaml"
    eight, four = (
        estimated(path, "--device", device, "--processes", n) for device, n in (("h100", "8"), ("h100", "4"))
    )
    assert eight["trained"] == pytest.approx(6.76e9, rel=1e-3)
    assert [stage["kept"] for stage in eight["stages"]] == [36, 36, 144]
    # Mean tokens over layers: the paper's own 7848 over 32 layers is for these three stages.
    assert sum(stage["mean_over_layers"] for stage in eight["stages"]) / 3 * 32 == pytest.approx(7848, rel=5e-4)
    shard = eight["trained"] * 16 + (eight["parameters"] - eight["trained"]) * 2
    memory = [found["stages"][0]["memory"] for found in (four, eight)]
    assert memory[0] - memory[1] == pytest.approx(shard / 8)
    assert four["hours"] == pytest.approx(2 * eight["hours"])
    # At the peak, all operations taken together can't be faster than their FLOPs.
    assert eight["hours"] >= eight["flops"] / 989.5e12 / 8 / 3600


@pytest.mark.usefixtures("_no_hub")
def test_only_published_sizes_replace_a_model(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "llava-1.5-7b" / "llavolta.yaml").read_text()
    path = tmp_path / "recipe.yaml"
    for old, new, message in (
        ("llava-hf/llava-1.5-7b-hf\n", "llava-hf/another\n", "llava-hf/another is not in the cache"),
        (re.search(r"  expected: .*\n", text)[0], "", "is not in the cache"),  # pyright: ignore[reportOptionalSubscript]
    ):
        path.write_text(text.replace(f"model: {old}", f"model: {new}") if "llava-hf" in old else text.replace(old, new))
        done = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
        assert (done.exit_code, message in done.output) == (2, True)
    path.write_text(text)
    for options in (("--device", "h100"), ("--processes", "2")):
        done = CliRunner().invoke(app, ["train", str(path), *options])
        assert (done.exit_code, "of the estimate of --dry-run" in done.output) == (2, True)
    with pytest.raises(FoveateError, match="is not in the cache"):
        unsharded(tmp_path / "run", read_mapping(path))


def test_llavas_own_list_is_taken_as_it_is(tmp_path: Path) -> None:
    """What its code trains on: no first turn of the model, no empty question, no image's word without an image."""
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    asked = {"from": "human", "value": "<image>\nwhat is it ?"}
    rows = [
        {"id": "1", "image": "a.png", "conversations": [asked, {"from": "gpt", "value": "a star"}]},
        {"id": "2", "model": "", "conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "x"},
                                                   {"from": "gpt", "value": "y"}]},
        {"id": "3", "conversations": [asked, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"},
                                      {"from": "gpt", "value": " "}]},
        {"id": "4", "conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": ""}]},
    ]  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    found = conversations(Data(llava=str(tmp_path / "mix.json"), images=str(tmp_path)))  # pyright: ignore
    said = [
        [part.get("text", "IMAGE") for message in found[i].messages for part in message["content"]]
        for i in range(len(found))
    ]
    assert said == [["IMAGE", "what is it ?", "a star"], ["x", "y"], ["what is it ?", "b"]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the recipe of a file for a tiny random model of its architecture, on eight rows, in two processes."""
    folder = tmp_path_factory.mktemp("models")
    rows: list[dict[str, Any]] = []
    for number in range(4):
        picture = Image.effect_noise((56, 56), 60 + number).convert("RGB")
        picture.save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat colour is it ?"}, {"from": "gpt", "value": "word32 word33"}]
        rows.append({"id": number, "image": f"{number}.png", "conversations": turns})
        turns = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": f"word{34 + number}"}]
        rows.append({"id": f"{number} text", "conversations": turns})
    (folder / "mix.json").write_text(json.dumps(rows))

    def make(path: Path) -> dict[str, Any]:
        kind = MODELS[path.parent.name]
        if not (folder / kind).exists():
            torch.manual_seed(0)
            save(next(row for row in ROWS if row.name == kind), folder / kind)
        given = read_mapping(path)
        del given["epochs"]
        data = {"llava": str(folder / "mix.json"), "images": str(folder)}
        given |= {"model": str(folder / kind), "data": data, "steps": 5, "batch": 4, "per_device": 1, "shards": True}
        # Exact, so that both runs can be compared; tiny models have three layers.
        given |= {"precision": "fp32", "workers": 0, "log_every": 1, "lr": 1e-3, "max_length": 512}
        given["trainer"] = {key: value for key, value in given.get("trainer", {}).items() if key != "optim"}
        if given["train"] == "lora":
            given["lora"] = {"rank": 2}
        if "atp" in given:
            given["atp"] |= {"layers": [1, 2], "target": 0.6, "calibrate": 2}
            del given["shards"]
        if "voco" in given:
            given["voco"] |= {"two_passes": False}
        return given

    return make


@pytest.mark.slow
@PEFT
@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_half_precision_files_at_the_recipes_own_precision(
    path: Path, tiny: Any, tmp_path: Path, in_full: bool
) -> None:
    pytest.importorskip("peft")
    if not in_full and name(path) not in (*SAMPLE, "llava-1.5-7b/atp"):
        pytest.skip("nox -s train runs all of them")
    given = tiny(path)
    given["precision"] = read_mapping(path)["precision"]
    model, processor = load(given["model"], dtype=STORED[MODELS[path.parent.name]])
    for part in (model, processor):
        part.save_pretrained(tmp_path / "half")
    unsharded(tmp_path / "run", {**given, "model": str(tmp_path / "half"), "steps": 3})
    assert len(told(tmp_path / "run", "loss")) == 3


@pytest.mark.parametrize("name", MODELS)
def test_every_label_of_a_step_counts_the_same(name: str, tiny: Any, tmp_path: Path) -> None:
    """However many conversations are taken at a time; Qwen2.5-VL itself averages over those alone."""
    given = tiny(ROOT / "recipes" / name / "llavolta.yaml")
    given |= {"steps": 2, "stages": "single", "test": "dense", "shards": False, "trainer": {}}
    del given["max_length"]
    for per_device in (4, 1):
        unsharded(tmp_path / str(per_device), {**given, "per_device": per_device})
    one, many = (told(tmp_path / str(per_device), "loss") for per_device in (4, 1))
    assert many == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
@PEFT
@pytest.mark.parametrize("path", [path for path in RECIPES if "atp" not in path.stem], ids=name)
def test_five_steps_on_a_tiny_model_in_shards(path: Path, tiny: Any, tmp_path: Path, in_full: bool) -> None:
    pytest.importorskip("peft")
    if not in_full and name(path) not in SAMPLE:
        pytest.skip("nox -s train runs all of them")
    given = tiny(path)
    parse_recipe(given)
    unsharded(tmp_path / "one", given)
    assert sharded(tmp_path / "two", given) == [0, 0]
    for number in ("loss", "grad_norm"):
        assert len(told(tmp_path / "two", number)) == 5
        assert told(tmp_path / "two", number) == pytest.approx(told(tmp_path / "one", number), rel=2e-4)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors")]
    files = [path for path in files if "checkpoint" not in str(path)]
    assert files
    for file in files:
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=1e-4, rtol=1e-4, msg=f"{file} {key}")


@PEFT
@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if "atp" in path.stem], ids=name)
def test_five_steps_of_thresholds_on_a_tiny_model(path: Path, tiny: Any, tmp_path: Path, in_full: bool) -> None:
    pytest.importorskip("peft")
    if not in_full and name(path) not in SAMPLE:
        pytest.skip("nox -s train runs all of them")
    unsharded(tmp_path / "run", tiny(path))
    assert len(told(tmp_path / "run", "loss")) == 5
    assert (tmp_path / "run" / "atp" / "atp.json").exists()
