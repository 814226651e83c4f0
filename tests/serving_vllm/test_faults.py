"""What a server must survive: clients that leave, images that are none or huge, and its engine's death under load."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from servers import Running, serving

from foveate.scenes import scene
from foveate.server_load import Server, Timed
from foveate.server_load.client import picture_url

SPECS = (
    *("dense", "cluster:64", "cluster:20", "cls:16", "cls:0.25@features", "visionzip:64", "cls:144+cluster:32"),
    *("pool2d:144:positions=pack", "divprune:0.1"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that allows nine specs; with its development mode its caches can be emptied."""
    log = tmp_path_factory.mktemp("faults") / "log.txt"
    with serving(log, "cluster:64", SPECS, VLLM_SERVER_DEV_MODE="1") as started:
        yield started


def ask(url: str, number: int, spec: str | None = None, image: str | None = None) -> Timed:
    shown = scene(number)
    return Server(url).ask("llava", image or picture_url(shown.image), shown.questions[0].text, spec=spec, new_tokens=4)


def forget(url: str) -> None:
    """Empty the caches of prompts, of processed pictures and of encoded ones."""
    for cache in ("prefix", "mm", "encoder"):
        with urllib.request.urlopen(urllib.request.Request(f"{url}/reset_{cache}_cache", method="POST"), timeout=60):
            pass


def idle(running: Running) -> dict[str, float]:
    """Wait until nothing runs, and return what is left in use."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    for _ in range(120):
        found = {name: value for name, value in running.metrics(*names).items() if "by_reason" not in name}
        if not any(found.values()):
            break
        time.sleep(0.5)
    return found


def body(number: int, new_tokens: int) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": picture_url(scene(number).image)}},
        {"type": "text", "text": scene(number).questions[0].text},
    ]
    asked = {"model": "llava", "messages": [{"role": "user", "content": content}], "stream": True}
    return json.dumps({**asked, "max_tokens": new_tokens, "ignore_eos": True}).encode()


def open_request(url: str, data: bytes) -> socket.socket:
    """Send a request, and leave its answer unread."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def noted(measured: dict[str, list[Any]], what: str, happened: str) -> None:
    measured.setdefault("faults", []).append({"what": what, "happened": happened})


def test_mixed_requests_are_answered_as_each_alone(running: Running, measured: dict[str, list[Any]]) -> None:
    pairs = [(number, SPECS[number % len(SPECS)]) for number in range(200)]
    with ThreadPoolExecutor(32) as threads:
        mixed = list(threads.map(lambda pair: ask(running.url, *pair), pairs))
    assert not [each.error for each in mixed if each.error]
    forget(running.url)
    alone = [ask(running.url, *pair) for pair in pairs]
    same = sum(one.text == other.text and one.prompt == other.prompt for one, other in zip(mixed, alone, strict=True))
    assert same == len(pairs)
    assert len({each.prompt for each in alone}) > len(SPECS)
    noted(
        measured,
        f"{len(pairs)} requests with {len(SPECS)} specs mixed, 32 at once",
        f"{same} of {len(pairs)} answers are those of the same request alone, with empty caches",
    )


def test_clients_that_leave_cost_nothing(running: Running, measured: dict[str, list[Any]]) -> None:
    before = ask(running.url, 300)
    for number in range(301, 309):
        with open_request(running.url, body(number, 900)) as connection:
            # Some leave at once, some after the first tokens.
            if number % 2:
                assert connection.recv(4096)
    with open_request(running.url, body(309, 4)[:-40]) as connection:
        connection.shutdown(socket.SHUT_WR)  # A body that never ends.
    left = idle(running)
    assert not any(left.values()), left
    forget(running.url)
    assert ask(running.url, 300).text == before.text
    noted(
        measured,
        "8 clients that close their streams of 900 tokens, 4 of them before the first, and one in its request",
        "nothing runs or waits afterwards, KV cache in use 0%; the next answer is right",
    )


def test_images_that_are_none_or_huge(running: Running, measured: dict[str, list[Any]]) -> None:
    file = io.BytesIO()
    scene(310).image.save(file, "PNG")
    for name, data in (
        ("no image at all", b"no picture"),
        ("an image that is cut off", file.getvalue()[: len(file.getvalue()) // 2]),
        ("no bytes", b""),
    ):
        made = ask(running.url, 310, image="data:image/png;base64," + base64.b64encode(data).decode())
        assert made.status == 400, (name, made)
        noted(measured, name, f"status {made.status}")
    pixels = np.random.default_rng(0).integers(0, 255, (4200, 4200, 3), dtype=np.uint8)
    huge = picture_url(Image.fromarray(pixels))
    assert len(huge) > 50e6
    made = ask(running.url, 310, image=huge)
    assert (made.status, made.error) == (200, ""), made
    noted(measured, f"a PNG of {len(huge) * 3 / 4 / 1e6:.0f} MB, 4,200 x 4,200 pixels", "answered, with 64 tokens")
    assert not any(idle(running).values())
    assert ask(running.url, 311).text


def test_an_engine_killed_under_load_is_reported_and_a_new_one_serves(
    running: Running, tmp_path: Path, measured: dict[str, list[Any]]
) -> None:
    expected = ask(running.url, 320).text
    words = [sys.executable, "-m", "foveate", "load", running.url, "--spec", "cluster:64", "--concurrency", "4"]
    words += ["--requests", "64", "--rounds", "20", "--out", str(tmp_path), "--timeout", "60"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
        seen = running.metrics("foveate_images_total")
        for _ in range(240):
            if sum(running.metrics("foveate_images_total").values()) > sum(seen.values()) + 80:
                break
            time.sleep(0.5)
        engines = [each for each in psutil.Process(running.process.pid).children(recursive=True) if _is_engine(each)]
        assert engines
        for engine in engines:
            os.kill(engine.pid, signal.SIGKILL)
        _, said = load.communicate(timeout=180)
    assert load.returncode == 2, said
    assert "stopped answering after" in said
    assert json.loads((tmp_path / "load.json").read_text())["died"]
    with serving(tmp_path / "log.txt", "cluster:64", SPECS) as again:
        assert ask(again.url, 320).text == expected
    last = said.strip().splitlines()[-1].replace(running.url, "http://127.0.0.1:8000")
    noted(
        measured, "the engine is killed under `foveate load`", f"it ends with: {last}; a new server answers as before"
    )


def _is_engine(process: psutil.Process) -> bool:
    return "EngineCore" in " ".join([process.name(), *process.cmdline()])
