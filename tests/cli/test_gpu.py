"""Commands on a GPU, of which only the device itself is false: models are put on the CPU where CUDA is asked for."""

import functools
import json
import time

import pytest
import torch
from commands import EXAMPLES, Commands
from PIL import Image
from tiny import write_tiny

# All that bind the names which are replaced must be loaded before.
import foveate.asking
import foveate.bench.answers
import foveate.devices

GPU = torch.device("cuda", 0)
CARD = "NVIDIA H100 80GB HBM3"
TITLE = f"bfloat16 on cuda:0 ({CARD})"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def gpu(monkeypatch):
    """Let commands believe in a GPU. Returns a list with an entry for each reading of the clock and each wait."""
    events = []
    usable = foveate.devices.usable_device

    def usable_device(name="auto"):
        return torch.device("cpu") if str(name) in ("auto", "cuda", "cuda:0") else usable(name)

    def read():
        events.append("read")
        return time.perf_counter()

    monkeypatch.setattr("foveate.devices.usable_device", usable_device)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: CARD)
    monkeypatch.setattr("foveate.engine.timing.synchronize", lambda places: events.append("wait"))
    for module in ("devices", "asking", "bench.answers", "engine.timing"):
        monkeypatch.setattr(f"foveate.{module}.devices_of", lambda model: (GPU,))
    monkeypatch.setattr("foveate.engine.timing.clock", read)
    return events


@pytest.fixture
def data(tmp_path):
    """Nine questions of different lengths about three images of different sizes."""
    lines = []
    for number, size in enumerate([(90, 60), (48, 48), (30, 100)]):
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / f"{number}.png")
        for end in ("", " here", " in the corner"):
            lines.append({"image": f"{number}.png", "question": f"is there a star{end} ?", "answer": "no"})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_bench_on_a_gpu_in_batches(gpu, tiny, data, tmp_path, monkeypatch):
    from transformers import LlamaModel

    calls = []
    forward = LlamaModel.forward

    @functools.wraps(forward)
    def watched(self, *arguments, **options):
        calls.append((options["inputs_embeds"].dtype, options["inputs_embeds"].shape[0]))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaModel, "forward", watched)
    specs = ("--spec", "cluster:4", "--spec", "cdpruner:4", "--spec", "pool:4@1", "--max-new-tokens", "3")
    place = ("--device", "cuda", "--dtype", "bfloat16", "--batch", "8")
    command = ("bench", "--model", tiny, "--data", data, *place, *specs)
    out = tmp_path / "out"
    found = Commands().json(*command, "--out", out)
    assert {dtype for dtype, _ in calls} == {torch.bfloat16}
    assert max(rows for _, rows in calls) == 8
    names = {"device": "cuda:0", "card": CARD, "dtype": "bfloat16", "quantize": None, "batch": 8}
    assert found.items() >= names.items()
    assert found["config"].items() >= {**names, "revision": None}.items()
    assert found["questions"] == 9
    # Each reading of the clock waits for the device first.
    assert len(gpu) > 100
    assert gpu == ["wait", "read"] * (len(gpu) // 2)
    assert f"{TITLE}, batch 8" in (out / "table.md").read_text()
    # The results exist: nothing is measured again, and the table names where they come from.
    calls.clear()
    text = Commands()(*command, "--out", out)
    assert not calls
    assert f"{TITLE}, batch 8" in text
    other = [word if word != "bfloat16" else "float32" for word in map(str, command)]
    assert "another run (different dtype, model)" in Commands().refused(*other, "--out", out)


def test_ask_and_find_layer_name_the_card(gpu, tiny, data):
    image = EXAMPLES / "shapes.png"
    place = ("--model", tiny, "--dtype", "bfloat16")
    found = Commands().json("ask", image, "is there a star ?", *place, "--spec", "stride:9", "--max-new-tokens", "2")
    # Of the run that warms up under `apply`, no time is reported.
    assert gpu.count("read") - 4 <= gpu.count("wait") > 50
    names = {"device": "cuda:0", "card": CARD, "dtype": "bfloat16", "quantize": None, "revision": None}
    assert found.items() >= names.items()
    assert f"{TITLE}." in Commands()("ask", image, "is there ?", *place, "--spec", "stride:9", "--max-new-tokens", "2")
    search = ("find-layer", "vtw", "--data", data, "--questions", "1", *place)
    assert Commands().json(*search).items() >= names.items()
    assert f"{TITLE}." in Commands()(*search)


@pytest.mark.parametrize("command", [("ask", EXAMPLES / "shapes.png", "what ?"), ("bench",), ("find-layer",)])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "cuda:7"), "this machine has no device 'cuda:7'"),
        (("--device", "moon"), "this machine has no device 'moon'"),
        (("--dtype", "int4"), "there is no dtype 'int4' here; use float32, bfloat16, float16, or auto"),
        (("--device", "cpu", "--device-map", "auto"), "--device cpu and --device-map auto exclude each other"),
        (("--device-map", "wide"), "there is no device map 'wide'"),
        (("--quantize", "3bit"), "there is no quantisation '3bit'; use 4bit or 8bit"),
        (("--revision", "v1"), "only models on the hub have revisions, and the embedded model has none"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_cannot_be_met_is_one_line(refuse, command, options, words):
    said = refuse(*command, *options)
    assert words in said
    assert "\n" not in said


def test_a_gpu_without_room_is_one_line(refuse, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore advice")

    monkeypatch.setattr("foveate.images.open_image", full)
    said = refuse("count", EXAMPLES / "shapes.png")
    assert said.startswith("the GPU has too little memory (CUDA out of memory. Tried to allocate 2 GiB); try a smaller")
    assert "\n" not in said
