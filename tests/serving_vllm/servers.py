"""Servers that tests start by `foveate serve`, and what their /metrics pages say."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.embedded import PATH

OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"),
    *("--max-num-seqs", "32", "--served-model-name", "llava"),
)
START = 400
"""Seconds that a server may take to start, on a busy machine."""


@dataclass
class Running:
    """A server with its process and the file with what it prints."""

    url: str
    process: subprocess.Popen[Any]
    log: Path

    def metrics(self, *names: str) -> dict[str, float]:
        """Values of the /metrics page whose names begin so, with their labels but for the model and the engine."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = {}
        for line in lines:
            if line.startswith(names):
                name, value = line.rsplit(" ", 1)
                found[re.sub(r'(model_name|engine)="[^"]*",?|\{\}', "", name).replace("{}", "")] = float(value)
        return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {**here, **more}


@contextmanager
def serving(log: Path, spec: str, allowed: Sequence[str] = (), **settings: str) -> Iterator[Running]:
    """Run `foveate serve` with the embedded model."""
    port = free_port()
    words = [sys.executable, "-m", "foveate", "serve", str(PATH), "--spec", spec, "--port", str(port)]
    words += [word for each in allowed for word in ("--allow", each)]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*words, "--", *OPTIONS], env=environment(**settings), stdout=lines, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url + "/health", process, log)
        yield Running(url, process, log)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])
