"""Bad input: one clear line, exit code 2, nothing on stdout, nothing half-written, before the model is loaded."""

import json
import re
import subprocess
import sys

import pytest
from commands import EXAMPLES
from PIL import Image

from foveate.errors import FoveateError

IMAGE = EXAMPLES / "shapes.png"


@pytest.mark.parametrize("command", [("ask", "what ?"), ("count",)])
def test_images(refuse, tmp_path, command):
    name, *rest = command
    text = tmp_path / "text.png"
    text.write_text("not an image")
    part = tmp_path / "part.png"
    part.write_bytes(IMAGE.read_bytes()[:400])
    (tmp_path / "empty").mkdir()
    for path, words in {
        tmp_path / "none.png": "there is no image",
        tmp_path / "empty": "holds no frames",
        text: "is not an image, whatever its name says",
        part: "cannot be read",
    }.items():
        said = refuse(name, path, *rest)
        assert words in said
        assert "\n" not in said


def test_a_huge_image(refuse, tmp_path):
    path = tmp_path / "huge.bmp"
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[18:26] = (50_000).to_bytes(4, "little") * 2
    path.write_bytes(bytes(data))
    assert "2,500,000,000 pixels, and the limit is 100,000,000" in refuse("ask", path, "what ?")


@pytest.mark.parametrize("question", ["", "   ", "\n\t"])
def test_empty_question(refuse, question):
    assert "the question is empty" in refuse("ask", IMAGE, question)


def test_a_question_with_the_placeholder(refuse):
    assert "<image>" in refuse("ask", IMAGE, "what is <image> ?")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clustre:64", '^^^^^^^ no method is called "clustre"; did you mean "cluster"?'),
        ("cluster:0", "^ keep 0 leaves nothing"),
        ("cluster:-1", "^^ keep -1 leaves nothing"),
        ("cluster:1.5", "^^^ keep 1.5 is no fraction"),
        ("cluster:nan", "^^^ invalid keep 'nan'"),
        ("cluster:64+cls:0", "^ keep 0 leaves nothing"),
        ("cluster:577", "keep 577 is more than the 576 tokens there are; keep at most 576, or 1.0"),
        ("cluster:64+cls:65", "keep 65 is more than the 64 tokens there are"),
        ("resize:600", "keep 600 is more than the 576"),
        ("cluster:64:strat=stride", '^^^^^ no option of cluster is called "strat"'),
        ("stride:64@encoder", "stride reads the grid alone"),
        ("cluster:64@moon", '^^^^ no place is called "moon"'),
        ("", "an empty spec"),
    ],
)
@pytest.mark.parametrize("command", [("ask", "what ?"), ("count",)])
def test_specs(refuse, spec, words, command):
    name, *rest = command
    said = refuse(name, IMAGE, *rest, "--spec", spec)
    assert words in said
    lines = said.splitlines()
    if "^" in words:
        # The caret stands under the place.
        marked = lines[0][lines[1].index("^") : lines[1].rindex("^") + 1]
        assert lines[0] == spec
        assert marked in words
    else:
        assert len(lines) == 1


def test_the_model_directory(refuse, directory, tmp_path):
    said = refuse("ask", IMAGE, "what ?", "--model", tmp_path / "none")
    assert "there is no model directory" in said
    assert "is a file" in refuse("ask", IMAGE, "what ?", "--model", IMAGE)
    assert "has no config.json" in refuse("ask", IMAGE, "what ?", "--model", tmp_path)

    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    said = refuse("count", IMAGE, "--model", directory)
    assert re.search(r"'bert' are not supported; \d+ families are supported  \(foveate families lists them\)", said)
    (directory / "config.json").write_text('{"model_type": ')
    assert "config.json is not JSON" in refuse("ask", IMAGE, "what ?", "--model", directory)
    (directory / "config.json").write_text("[]")
    assert "config.json holds no JSON object" in refuse("ask", IMAGE, "what ?", "--model", directory)


def test_a_directory_without_its_processor(refuse, directory):
    for each in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / each).unlink()
    said = refuse("ask", IMAGE, "what ?", "--model", directory)
    assert "processor" in said
    assert "\n" not in said


def test_weights(run, directory):
    said = run.refused("ask", IMAGE, "what ?", "--model", directory)
    assert "holds no weights (*.safetensors)" in said
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04anything")
    said = run.refused("ask", IMAGE, "what ?", "--model", directory)
    assert "pickled weights (pytorch_model.bin)" in said
    assert "safetensors only" in said
    (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    said = run.refused("ask", IMAGE, "what ?", "--model", directory)
    assert "model.safetensors is no whole safetensors file" in said
    assert "\n" not in said


def test_weights_of_another_model(run, directory):
    import torch
    from safetensors.torch import save_file

    save_file({"something": torch.zeros(1)}, directory / "model.safetensors", {"format": "pt"})
    said = run.refused("ask", IMAGE, "what ?", "--model", directory)
    assert "describes a model of 8,262,720 weights, and its files hold 1" in said


def test_the_picture(refuse, tmp_path):
    ask = ("ask", IMAGE, "what ?", "--picture")
    assert "there is no folder" in refuse(*ask, tmp_path / "none" / "out.png")
    assert "has no suffix of a picture" in refuse(*ask, tmp_path / "out.doc")
    assert "is a folder" in refuse("ask", IMAGE, "what ?", "--picture", _made(tmp_path / "folder.png"))
    linked, other = tmp_path / "linked.png", tmp_path / "image.png"
    other.write_bytes(IMAGE.read_bytes())
    linked.symlink_to(other)
    hard = tmp_path / "hard.png"
    hard.hardlink_to(other)
    for path in (linked, hard):
        assert "would overwrite" in refuse("ask", other, "what ?", "--picture", path)
        path.unlink()
    other.unlink()
    before = IMAGE.read_bytes()
    assert "would overwrite" in refuse(*ask, IMAGE)
    assert IMAGE.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["folder.png"]


def _made(path):
    path.mkdir()
    return path


def test_a_device_that_is_not_there(refuse):
    assert "no device 'moon'" in refuse("ask", IMAGE, "what ?", "--device", "moon")


def test_a_question_longer_than_the_model_takes(run):
    assert "room for 2048" in run.refused("ask", IMAGE, "what colour is it ? " * 400)


def test_usage(refuse):
    for words in ([], ["IMAGE"], ["image.png", "what ?", "--max-new-tokens", "0"]):
        refuse("ask", *words)
    refuse("aks")


def test_an_interruption_is_one_line(run, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("foveate.images.open_image", interrupted)
    assert run.refused("count", IMAGE, code=130) == "interrupted; no partial files were left behind"


def test_what_nobody_foresaw_keeps_its_traceback(run, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("foveate.images.open_image", broken)
    with pytest.raises(ZeroDivisionError):
        run("count", IMAGE)


def test_from_a_shell():
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "ask", str(IMAGE), "what colour ?", "--spec", "clustre:64@2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "clustre:64@2",
        '^^^^^^^ no method is called "clustre"; did you mean "cluster"?  (foveate methods lists them)',
    ]


def test_the_library_raises_the_same(tmp_path):
    from foveate.loading import load

    with pytest.raises(FoveateError, match="there is no model directory"):
        load(tmp_path / "none")


def test_a_current_folder_that_is_gone(refuse, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (("methods",), ("count", EXAMPLES / "shapes.png"), ("bench",), ("train", tmp_path / "r.yaml")):
        assert refuse(*words) == "the current folder was removed; change to another one (cd)"


def test_an_empty_dtype_is_none(refuse, tmp_path):
    assert "there is no data type ''" in refuse("calibrate", "--dtype", "", "--out", tmp_path / "d.toml")
