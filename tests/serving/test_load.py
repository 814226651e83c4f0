"""`foveate load` against a server of this process that answers as vLLM's does, late, never, or until it dies."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foveate.commands import app
from foveate.errors import FoveateError
from foveate.server_load import Load, Server, check_here, rows, run

TOKENS = {None: 64, "dense": 576, "cluster:64": 64}


class Answers(BaseHTTPRequestHandler):
    """Streams two words; dense images take longer. `dies_after` answers, it breaks off and is gone."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]]
    dies_after = 10**9

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.whole(200 if len(self.asked) < self.dies_after else 503, {})
        return self.whole(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        spec = body.get("mm_processor_kwargs", {}).get("foveate")
        if spec not in TOKENS:
            return self.whole(400, {"error": {"message": f"foveate: {spec} isn't allowed"}})
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        time.sleep(0.02 if spec == "dense" else 0.002)
        for word in ("a ", "star"):
            self.event({"choices": [{"delta": {"content": word}}]})
            if len(self.asked) > self.dies_after:
                return None
        self.event({"choices": [], "usage": {"prompt_tokens": TOKENS[spec], "completion_tokens": 2}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def whole(self, status: int, data: dict[str, Any]) -> None:
        written = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def handler() -> type[Answers]:
    return type("Own", (Answers,), {"asked": []})


@pytest.fixture
def url(handler: type[Answers]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_the_command_takes_turns_and_writes_what_it_measured(url: str, handler: type[Answers], tmp_path: Path) -> None:
    words = ["load", url, "--spec", "cluster:64", "--concurrency", "1,2", "--requests", "3", "--rounds", "2"]
    words += ["--image", "64x32", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "cluster:64" in done.stdout
    found = json.loads((tmp_path / "out" / "load.json").read_text())
    assert (tmp_path / "out" / "load.png").stat().st_size > 1000
    dense, short = (row for row in found["rows"] if row["concurrency"] == 2)
    assert (dense["spec"], dense["requests"], dense["failed"], dense["prompt_tokens"]) == ("dense", 6, 0, 576)
    assert dense["throughput_ratio"] == {"median": 1.0, "least": 1.0, "greatest": 1.0}
    assert (short["spec"], short["prompt_tokens"]) == ("cluster:64", 64)
    assert short["first_ratio"]["median"] < 1 < short["throughput_ratio"]["median"]
    # One warm request of each spec, then waves of three in turns.
    named = [body["mm_processor_kwargs"]["foveate"] for body in handler.asked[2:14]]
    assert named == ["dense"] * 3 + ["cluster:64"] * 6 + ["dense"] * 3
    pictures = [body["messages"][0]["content"][0]["image_url"]["url"] for body in handler.asked[2:14]]
    assert pictures[:3] == pictures[3:6]
    assert len(set(pictures)) == 6
    assert all(body["ignore_eos"] and body["max_tokens"] == 16 for body in handler.asked)


def test_a_server_that_dies_is_reported_with_what_was_measured(
    url: str, handler: type[Answers], tmp_path: Path
) -> None:
    handler.dies_after = 8
    words = ["load", url, "--spec", "cluster:64", "--concurrency", "1", "--requests", "4", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--image", "64x32", "--json"])
    assert done.exit_code == 2
    assert "stopped answering after 6 answers, with 1 requests at once (the answer broke off)" in done.stderr
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["died"] in done.stderr
    dense, short = json.loads(done.stdout)["rows"]
    assert (dense["requests"], short["requests"], short["failed"]) == (4, 2, 2)
    # After the answer that broke off nothing more was sent.
    assert len(handler.asked) == 9


def test_a_server_is_asked_without_a_spec_if_none_is_named(url: str, handler: type[Answers]) -> None:
    sweep = run(Server(url), Load(concurrency=(1,), requests=1, rounds=1, size=(32, 32)))
    assert [row["prompt_tokens"] for row in rows(sweep)] == [64]
    assert all("mm_processor_kwargs" not in body for body in handler.asked)


def test_what_is_refused(url: str) -> None:
    with pytest.raises(FoveateError, match="the server refuses cluster:9: foveate: cluster:9 isn't allowed"):
        run(Server(url), Load(("cluster:9",), (1,), 1, 1, size=(32, 32)))
    for address, reason in (
        ("localhost:8000", "no address of a server"),
        ("http://192.0.2.1", "another machine"),
        ("http://nobody.invalid", "no machine nobody.invalid"),
    ):
        with pytest.raises(FoveateError, match=reason):
            check_here(address)
    assert check_here("http://192.0.2.1", remote=True).hostname == "192.0.2.1"
    with pytest.raises(FoveateError, match="21,000 requests are more than 20,000"):
        Load(("a", "b", "c"), (1,), 7_000, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    with pytest.raises(FoveateError, match="start one: foveate serve MODEL"):
        Server(f"http://127.0.0.1:{free}").model()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--spec", "clutser:64"], 'did you mean "cluster"?'),
        (["--concurrency", "1;4"], "no list of numbers"),
        (["--concurrency", "0"], "concurrency"),
        (["--image", "64"], "write WIDTHxHEIGHT"),
    ],
)
def test_bad_options(words: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["load", "http://localhost:1", *words])
    assert done.exit_code == 2
    assert reason in done.stderr
