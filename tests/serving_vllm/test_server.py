"""vLLM's OpenAI-compatible server with the plugin: specs of the server and of requests, and what it refuses."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveate.embedded import PATH
from foveate.scenes import scene

OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"),
    *("--max-num-seqs", "8", "--served-model-name", "llava"),
)
START = 400
"""Seconds that a server may take to start, on a busy machine."""


def command(port: int, *options: str) -> list[str]:
    module = "vllm.entrypoints.openai.api_server"
    return [sys.executable, "-m", module, "--model", str(PATH), "--port", str(port), *OPTIONS, *options]


def environment(**more: str) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {**here, **more}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a spec of its own, which allows two others."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    settings = environment(FOVEATE_SPEC="cluster:64", FOVEATE_SPECS="cluster:16;dense")
    with log.open("w") as lines:
        process = subprocess.Popen(
            command(port, "--trust-request-mm-kwargs"), env=settings, stdout=lines, stderr=subprocess.STDOUT
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def picture(number: int) -> str:
    file = io.BytesIO()
    scene(number).image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(server: str, number: int = 3, spec: Any = None, image: str | None = None) -> tuple[int, Any]:
    """Ask about a picture; return the status and what came back."""
    content = [
        {"type": "image_url", "image_url": {"url": image or picture(number)}},
        {"type": "text", "text": scene(number).questions[0].text},
    ]
    body: dict[str, Any] = {"model": "llava", "max_tokens": 4, "temperature": 0}
    body["messages"] = [{"role": "user", "content": content}]
    if spec is not None:
        body["mm_processor_kwargs"] = {"foveate": spec}
    request = urllib.request.Request(
        server + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_requests_get_the_servers_spec_or_an_allowed_one(server: str) -> None:
    counts = {}
    for spec in (None, "cluster:64", "cluster:16", "dense"):
        status, answer = ask(server, spec=spec)
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"]
        counts[spec] = answer["usage"]["prompt_tokens"]
    assert counts[None] == counts["cluster:64"] == counts["dense"] - 576 + 64
    assert counts["cluster:16"] == counts["dense"] - 576 + 16


def test_what_a_server_refuses_has_status_400_and_it_goes_on(server: str, measured: dict[str, list[Any]]) -> None:
    rows = []
    for spec, reason in {
        "cluster:17": "cluster:17 is not among the specs of this server: cluster:64, cluster:16, dense",
        "clutser:64": 'did you mean \\"cluster\\"?',
        "cluster:9999": "is not among the specs of this server",
        "fastv:0.5@2": "acts inside the decoder",
        "resize:0.25": "vLLM has prepared the image by then",
        "": "an empty spec",
    }.items():
        status, text = ask(server, spec=spec)
        assert status == 400, text
        assert reason in text, text
        message = json.loads(text)["error"]["message"]
        rows.append(
            {"spec": spec, "status": status, "text": message[message.index("foveate: ") + 9 :].splitlines()[-1]}
        )
    for wrong in (64, {"spec": "cluster:64"}, ["cluster:16"]):
        status, text = ask(server, spec=wrong)
        assert status == 400, text
        assert "is text such as" in text
    status, _ = ask(server, image="data:image/png;base64," + base64.b64encode(b"no picture").decode())
    assert status == 400
    assert ask(server)[0] == 200
    measured["refused"] = rows


def test_a_server_with_a_bad_spec_does_not_start() -> None:
    done = subprocess.run(
        command(free_port(), "--mm-processor-kwargs", '{"foveate": "clutser:64"}'),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert done.returncode != 0
    assert 'did you mean "cluster"?' in done.stdout + done.stderr
