"""Models named by the hub: from a cache without a network, and from a server that answers as the hub does."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from foveate.embedded import PATH
from foveate.errors import FoveateError
from foveate.hub import hub_answers, is_hub_name
from foveate.loading import commit_of, load, skeleton

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECOND = "fedcba9876543210fedcba9876543210fedcba98"
IMAGE = PATH.parents[3] / "examples" / "shapes.png"


def cached(home, name, commit=COMMIT, branch="main", files=None):
    """Put links to the embedded model's files into a cache, where huggingface_hub would have downloaded them."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    blobs, snapshot = repository / "blobs", repository / "snapshots" / commit
    blobs.mkdir(exist_ok=True)
    snapshot.mkdir(parents=True)
    for file in PATH.iterdir():
        if files is None or file.name in files:
            (blobs / f"{commit}-{file.name}").symlink_to(file)
            (snapshot / file.name).symlink_to(blobs / f"{commit}-{file.name}")


def in_a_process(program, home, **variables):
    """Return what a program prints as JSON. huggingface_hub reads its variables once, when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HOME": str(home), "HF_TOKEN": "", "NO_PROXY": "*", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MESSAGES = """
import json, time
time.sleep = lambda seconds: None  # huggingface_hub tries again several times
from foveate.errors import FoveateError
from foveate.loading import load, load_model, load_processor, skeleton
from foveate.costmodel import read_model

def said(load, *arguments, **options):
    try:
        load(*arguments, **options)
    except FoveateError as error:
        return str(error)

"""


def test_what_is_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("llava-hf/llava-1.5-7b-hf")
    for name in ("gpt2", "a/b/c", "/a/b", "a/", "../b", "./b", "a/b c", "~/b", tmp_path / "a", ""):
        assert not is_hub_name(name), name
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(PATH)
    assert not is_hub_name("org/name")
    # The folder wins, and a folder has no revisions.
    assert skeleton("org/name").config.model_type == "llava"
    with pytest.raises(FoveateError, match="leave out the revision 'v1'"):
        load("org/name", revision="v1")
    with pytest.raises(FoveateError, match="only models on the hub have revisions"):
        commit_of(None, "v1")


def test_a_cached_model_loads_by_its_name_without_a_network(tmp_path):
    cached(tmp_path, "org/name")
    cached(tmp_path, "org/name", SECOND, "older", {"config.json"})
    cached(tmp_path, "org/broken", files={"config.json"})
    found = in_a_process(
        MESSAGES
        + f"""
import foveate, torch
from foveate.loading import commit_of
model, processor = foveate.load("org/name", dtype="bfloat16")
same = foveate.reference()[0]
print(json.dumps({{
    "dtype": str(model.dtype),
    "equal": all(torch.equal(a, b.to(a.dtype)) for a, b in zip(model.parameters(), same.parameters())),
    "commits": [commit_of("org/name"), commit_of("org/name", "older"), commit_of("org/name", "{COMMIT}")],
    "cost": read_model("org/name").parameters == read_model(None).parameters,
    "revision": said(load, "org/name", revision="v9"),
    "absent": said(load, "org/absent"),
    "processor": said(load_processor, "org/broken"),
    "weights": said(load_model, "org/name", revision="older"),
    "bare": skeleton("org/broken").config.model_type,
}}))
""",
        tmp_path,
        HF_HUB_OFFLINE="1",
    )
    assert found["dtype"] == "torch.bfloat16"
    assert found["equal"]
    assert found["commits"] == [COMMIT, SECOND, COMMIT]
    assert found["cost"]
    assert found["bare"] == "llava"
    cache = tmp_path / "hub"
    assert found["absent"].startswith(f"org/absent is not in the cache {cache}, and HF_HUB_OFFLINE forbids downloads")
    assert found["revision"].startswith(f"org/name at revision v9 is not in the cache {cache}")
    assert "org/broken" in found["processor"]
    assert SECOND in found["weights"]
    assert not any("\n" in text for text in found.values() if isinstance(text, str))


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that exist only in part, by their organisation."""

    def do_GET(self):
        """Answer with a file, or with the hub's header for why there is none."""
        self.server.asked.append(self.path)
        parts = self.path.split("/")
        organisation, revision, file = parts[1], parts[4] if len(parts) > 4 else "", parts[-1]
        if organisation == "gated":
            self.refuse(403, "GatedRepo")
        elif organisation == "private":
            self.refuse(401, "RepoNotFound")
        elif organisation == "token":
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif organisation == "ill":
            self.refuse(500, None)
        elif organisation not in ("here", "odd"):
            self.refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif file == "config.json" and organisation == "here":
            self.send(200, (PATH / "config.json").read_bytes(), ETag='"1"')
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def refuse(self, status, code, message=""):
        headers = {"X-Error-Message": message} if message else {}
        self.send(status, b"{}", **headers, **({"X-Error-Code": code} if code else {}))

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Keep the log out of the tests' output."""


@pytest.fixture(scope="module")
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    names = ("none/model", "private/model", "gated/model", "token/model", "odd/model", "here/model", "ill/model")
    found = in_a_process(
        MESSAGES
        + f"""
found = {{name: said(load, name) for name in {names!r}}}
found["cost"] = said(read_model, "gated/model")
found["revision"] = said(load, "here/model", revision="v9")
found["bare"] = skeleton("here/model").config.model_type
print(json.dumps(found))
""",
        tmp_path,
        HF_ENDPOINT=endpoint,
    )
    assert "none/model is no folder here and no public model of the hub" in found["none/model"]
    assert found["private/model"] == found["none/model"].replace("none", "private")
    for text in (found["gated/model"], found["cost"]):
        assert text.startswith(f"gated/model is gated: accept its terms at {endpoint}/gated/model, then log in")
    assert "refuses the token for token/model" in found["token/model"]
    assert found["odd/model"].startswith("odd/model on the hub has no config.json")
    assert found["revision"] == (
        f"here/model has no revision 'v9'; its branches and tags are at {endpoint}/here/model/tree/main"
    )
    # Only the configuration is there: the processor is what is asked for first.
    assert "here/model" in found["here/model"]
    assert "ill/model" in found["ill/model"]
    assert found["bare"] == "llava"
    assert not any("\n" in text for text in found.values())


def test_a_skeleton_downloads_the_configuration_only(hub, tmp_path):
    hub.asked.clear()
    program = MESSAGES + 'print(json.dumps([skeleton("here/model").config.model_type, read_model("here/model").kind]))'
    in_a_process(program, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_address[1]}")
    assert {path.split("/")[-1] for path in hub.asked if "/resolve/" in path} == {"config.json"}
    files = [path.name for path in (tmp_path / "hub").rglob("*") if path.is_symlink()]
    assert files == ["config.json"]


def test_weights_that_are_no_safetensors(hub, tmp_path):
    program = MESSAGES + 'print(json.dumps(said(load_model, "here/model")))'
    said = in_a_process(program, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_address[1]}")
    assert said.startswith("here/model on the hub has no weights in safetensors; foveate reads safetensors only")


def test_a_missing_network_is_one_line(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    said = in_a_process(
        MESSAGES + 'print(json.dumps([said(load, "org/name"), said(read_model, "org/name")]))',
        tmp_path,
        HF_ENDPOINT=f"http://127.0.0.1:{port}",
    )
    for text in said:
        assert text.startswith("org/name is neither a folder here nor in the cache, and the hub http://127.0.0.1:")
        assert "check the network" in text
        assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "times", "answers"), [("ConnectError", 2, False), ("ConnectTimeout", 2, False), ("ReadTimeout", 1, True)]
)
def test_the_hub_is_asked_at_most_twice_a_minute(monkeypatch, name, times, answers):
    """A hub that can't be connected to is told in seconds; one that is slow, or refuses, is there."""
    asked, host = [], f"https://{name}.test"

    def refused(page, **options):
        asked.append(page)
        raise type(name, (Exception,), {})

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refused)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda name, file, revision: f"{host}/{name}/{file}")
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("foveate.hub.time.sleep", lambda seconds: None)
    assert [hub_answers("org/name"), hub_answers("org/other", "v1")] == [answers, answers]
    assert asked == [f"{host}/org/name/config.json"] * times


@pytest.mark.parametrize(
    "command",
    [("ask", IMAGE, "what ?"), ("count", IMAGE), ("cost",), ("bench",), ("find-layer",)],
)
def test_commands_take_names(command, tmp_path):
    cached(tmp_path, "org/name", files={"config.json"})
    words = [str(word) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "foveate", *words, "--model", "org/absent"],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("org/absent is not in the cache")
    assert len(done.stderr.splitlines()) == 1
