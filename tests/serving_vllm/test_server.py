"""vLLM's OpenAI-compatible server with the plugin: specs of the server and of requests, and what it refuses."""

import base64
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from servers import START, Running, environment, free_port, serving

from foveate.embedded import PATH
from foveate.scenes import scene


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a spec of its own, which allows two others."""
    with serving(tmp_path_factory.mktemp("server") / "log.txt", "cluster:64", ("cluster:16", "dense")) as started:
        yield started


@pytest.fixture(scope="module")
def server(running: Running) -> str:
    return running.url


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


def test_tokens_are_counted_before_and_after(running: Running) -> None:
    names = ("foveate_images_total", "foveate_visual_tokens_")
    before = running.metrics(*names)
    for number, spec in ((20, None), (20, None), (21, "cluster:16"), (22, "dense")):
        assert ask(running.url, number, spec)[0] == 200
    after = running.metrics(*names)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if "created" not in name}
    assert {name: value for name, value in grown.items() if value} == {
        'foveate_images_total{spec="cluster:64"}': 2,
        'foveate_images_total{spec="cluster:16"}': 1,
        'foveate_images_total{spec="dense"}': 1,
        'foveate_visual_tokens_before_total{spec="cluster:64"}': 1152,
        'foveate_visual_tokens_before_total{spec="cluster:16"}': 576,
        'foveate_visual_tokens_before_total{spec="dense"}': 576,
        'foveate_visual_tokens_after_total{spec="cluster:64"}': 128,
        'foveate_visual_tokens_after_total{spec="cluster:16"}': 16,
        'foveate_visual_tokens_after_total{spec="dense"}': 576,
    }
    log = running.log.read_text()
    assert "visual_tokens" not in log
    assert "each with 64.0 of 576.0 visual tokens on average: 512.0 saved (89%)" in log
    assert "with cluster:64, on http://127.0.0.1" in log


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
    """However it is started: `foveate serve` doesn't even try."""
    module = "vllm.entrypoints.openai.api_server"
    done = subprocess.run(
        [sys.executable, "-m", module, "--model", str(PATH), "--port", str(free_port())],
        env=environment(FOVEATE_SPEC="clutser:64"),
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert done.returncode != 0
    assert 'did you mean "cluster"?' in done.stdout + done.stderr
