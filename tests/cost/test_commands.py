"""`foveate cost` and `foveate calibrate`, as people type them."""

import json
from pathlib import Path

import pytest
from commands import Commands

from foveate.commands import app
from foveate.costmodel import published
from foveate.costmodel.device import read_devices
from foveate.embedded import PATH


@pytest.fixture
def run() -> Commands:
    return Commands()


def test_a_table(run: Commands) -> None:
    text = run("cost", "--model", "llava-1.5-7b", "--spec", "cluster:64", "--spec", "pyramiddrop:0.5@8,16,24")
    for words in (
        "dense",
        "pyramiddrop:0.5@8,16,24",
        "1 multiply-add = 2 FLOPs",
        "cluster:64 saves time from 400 visual tokens on",
        "NVIDIA H100",
        "lower bounds",
        "270.0",
        "--json",
    ):
        assert words in text, text


def test_json(run: Commands) -> None:
    found = run.json(
        "cost",
        "--model",
        "qwen2.5-vl-7b",
        "--image",
        "1344x1008",
        "--image",
        "300X200",
        "--new-tokens",
        8,
        "--batch",
        2,
    )
    dense, short = found["costs"]
    assert dense["spec"] == "dense"
    assert dense["break_even"] is None
    assert dense["visual_tokens"] == 48 * 36 + 11 * 7
    assert short["spec"] == "cluster:64"
    assert short["kept_tokens"] == 128
    assert short["break_even"]["largest"] == 16_384
    assert found["images"] == [[1344, 1008], [300, 200]]
    assert "multiply-add" in found["convention"]
    assert found["device"]["name"] == "h100"


def test_clips(run: Commands) -> None:
    words = ("cost", "--model", "qwen2.5-vl-7b", "--clip", "16x640x360", "--spec", "evs:0.5")
    found = run.json(*words)
    assert (found["images"], found["clips"]) == ([], [[16, 640, 360]])
    dense, short = (each["kept_tokens"] for each in found["costs"])
    assert (dense, short) == (8 * 13 * 23, 4 * 13 * 23)
    assert "qwen2.5-vl-7b, clip 16 x 640 x 360, 60 text" in run(*words)
    both = run.json(*words[:5], "--image", "640x360")["costs"][0]
    assert both["visual_tokens"] == 9 * 13 * 23


def test_a_directory_needs_no_weights(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((PATH / "config.json").read_bytes())
    told = run.json("cost", "--model", tmp_path)["costs"]
    assert told == run.json("cost")["costs"]


def test_devices(run: Commands) -> None:
    assert "NVIDIA L4" in run("cost", "--devices")
    found = run.json("cost", "--devices")
    assert found["models"] == list(published())
    assert {"h100", "laptop"} <= {each["name"] for each in found["devices"]}


def test_warnings(run: Commands) -> None:
    words = run("cost", "--model", "llava-1.5-7b", "--text-tokens", 4000, "--device", "l4", "--batch", 16)
    assert "the model has 4,096" in words
    assert "dense does not fit" in words


def test_a_model_of_which_only_the_decoder_is_known(run: Commands, tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("vipllava").save_pretrained(tmp_path)
    result = run.runner.invoke(app, ["cost", "--model", str(tmp_path), "--json"])
    assert "does not know the vision side of 'vipllava'" in result.stderr
    told = json.loads(result.stdout)["costs"][0]
    assert told["visual_tokens"] == 576
    assert [part["flops"] for part in told["parts"][:2]] == [0, 0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--model", "llava-2"),
            "there is no configuration llava-2; name a model directory, a config.json",
        ),
        (("--device", "a1000"), 'no device is called "a1000"; did you mean "a100"?'),
        (("--image", "336"), "--image '336' is not a size; write WIDTHxHEIGHT in pixels"),
        (("--image", "0x336"), "0 x 336 pixels does not exist"),
        (("--image", "-5x336"), "-5 x 336 pixels does not exist"),
        (("--clip", "640x360"), "--clip '640x360' is not the size of a clip; write FRAMESxWIDTHxHEIGHT"),
        (("--clip", "0x640x360"), "frames of a clip must be a whole number from 1 to 10,000, not 0"),
        (("--clip", "4x0x360"), "a picture of 0 x 360 pixels does not exist"),
        (("--image", "99999x99999"), "9,999,800,001 pixels, and the limit is 100,000,000"),
        (
            ("--new-tokens", "1000000000000000000000000000000"),
            "'--new-tokens': Input should be less than or equal to 1000000",
        ),
        (("--batch", "1000000000000000000000000000000"), "'--batch': Input should be less than or equal to 999999999"),
        (("--batch", "0"), "batch must be a whole number from 1 on, not 0"),
        (("--new-tokens", "0"), "new_tokens must be a whole number from 1 to 1,000,000, not 0"),
        (("--text-tokens", "-1"), "text_tokens must be a whole number from 0 on, not -1"),
        (("--dtype", "int4"), "there is no data type 'int4' here"),
        (("--spec", "clustre:64"), 'no method is called "clustre"; did you mean "cluster"?'),
        (("--spec", "cluster:577"), "keep 577 is more than the 576 tokens there are"),
        (("--spec", "pool:0.5@99"), "this decoder has 12 layers"),
    ],
)
def test_bad_input(run: Commands, words: tuple[str, ...], said: str) -> None:
    assert said in run.refused("cost", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "warp"), "this machine has no device 'warp'"),
        (("--threads", "0"), "--threads is 0; it must be from 1 to"),
        (("--seconds", "-1"), "--seconds is -1; it must be from 0 to 3600"),
        (("--name", "my machine"), "--name 'my machine' is not valid"),
        (("--dtype", "int4"), "there is no data type 'int4' here"),
    ],
)
def test_bad_calibrations(run: Commands, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in run.refused("calibrate", "--out", tmp_path / "device.toml", *words)
    assert not list(tmp_path.iterdir())


def test_calibrate_writes_beside_what_is_there(run: Commands, tmp_path: Path) -> None:
    notes = tmp_path / "notes.toml"
    notes.write_text("just text")
    assert "notes.toml is not TOML" in run.refused("calibrate", "--out", notes)
    assert notes.read_text() == "just text"
    assert "is a folder" in run.refused("calibrate", "--out", tmp_path)

    path = tmp_path / "device.toml"
    for name in ("first", "second"):
        found = run.json("calibrate", "--out", path, "--name", name, "--seconds", 0, "--threads", 1)
        assert found["device"]["measured"]
        assert found["file"] == str(path)
    held = read_devices(path)
    assert set(held) == {"first", "second"}
    alone = tmp_path / "alone.toml"
    alone.write_text(path.read_text().partition('["second"]')[0])
    told = run.json("cost", "--device", alone)
    assert told["device"]["name"] == "first"
    assert json.dumps(told)
