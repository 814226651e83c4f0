"""One request to an OpenAI-compatible server, with the times of its answer."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from PIL import Image

from foveate.errors import FoveateError, first_line, shortened
from foveate.images import data_url

_LONGEST_TEXT: Final = 300
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Timed:
    """A request and its answer.

    Attributes:
        status: of HTTP; 0 if no answer came or it broke off.
        first: seconds until the first token; None if there was none.
        seconds: until the end.
        prompt: tokens of the prompt.
        answer: tokens of the answer.
        text: of the answer.
        error: why there is no whole answer; empty if there is one.
    """

    status: int
    first: float | None
    seconds: float
    prompt: int = 0
    answer: int = 0
    text: str = ""
    error: str = ""


def check_here(url: str, remote: bool = False) -> SplitResult:
    """Check that an address is that of a server on this machine.

    >>> check_here("http://localhost:8000/v1").port
    8000
    >>> check_here("http://192.0.2.1:8000")
    Traceback (most recent call last):
    foveate.errors.FoveateError: 192.0.2.1 is another machine; ask whoever runs it, and add --remote

    Args:
        url: of the server, with or without /v1.
        remote: whether it may be another machine.

    Raises:
        FoveateError: it is no address, nobody has that name, or it is another machine.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise FoveateError(f"{url!r} is no address of a server; write for instance http://localhost:8000")
    if remote:
        return parts
    try:
        found = socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FoveateError(f"there is no machine {host} ({first_line(error)})") from None
    if not all(ipaddress.ip_address(each[4][0]).is_loopback for each in found):
        raise FoveateError(f"{host} is another machine; ask whoever runs it, and add --remote")
    return parts


def picture_url(image: Image.Image) -> str:
    """Return an image as a data URL, as requests bring it."""
    return data_url(image, "png")


class Server:
    """A server that speaks OpenAI's protocol.

    Args:
        url: of it, with or without /v1.
        timeout: seconds without a byte after which a request has failed.
        remote: whether it may be another machine.

    Raises:
        FoveateError: it is no address, or that of another machine.
    """

    def __init__(self, url: str, timeout: float = 120.0, remote: bool = False) -> None:
        parts = check_here(url, remote)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.timeout = timeout
        self._secure = parts.scheme == "https"
        self._place = (parts.hostname or "", parts.port or (443 if self._secure else 80))
        self._path = parts.path.rstrip("/").removesuffix("/v1")

    def _connection(self, timeout: float | None = None) -> HTTPConnection:
        kind = HTTPSConnection if self._secure else HTTPConnection
        return kind(*self._place, timeout=timeout or self.timeout)

    def answers(self) -> bool:
        """Return whether the server is there and well."""
        with closing(self._connection(min(self.timeout, 10.0))) as connection:
            try:
                connection.request("GET", self._path + "/health")
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False

    def model(self) -> str:
        """Return the name of the first model that is served.

        Raises:
            FoveateError: nothing answers there, or it isn't such a server.
        """
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", self._path + "/v1/models")
                listed = json.loads(connection.getresponse().read())
                return str(listed["data"][0]["id"])
            except (OSError, HTTPException) as error:
                raise FoveateError(
                    f"no server answers at {self.url} ({first_line(error)}); start one: foveate serve MODEL"
                ) from None
            except (ValueError, LookupError, TypeError):
                raise FoveateError(f"what answers at {self.url} isn't an OpenAI-compatible server") from None

    def ask(
        self, model: str, image: str, question: str, *, spec: str | None = None, new_tokens: int = 16, **more: Any
    ) -> Timed:
        """Ask about an image, and read the answer as it comes; errors are part of what is returned.

        Args:
            model: its name.
            image: a URL, such as `picture_url` gives.
            question: about it.
            spec: that the request names; None names none.
            new_tokens: the longest answer.
            **more: fields of the request's body.
        """
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
        body: dict[str, Any] = {
            **{"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": new_tokens},
            **{"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **more},
        }
        if spec is not None:
            body["mm_processor_kwargs"] = {"foveate": spec}
        began = time.perf_counter()
        with closing(self._connection()) as connection:
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", self._path + "/v1/chat/completions", json.dumps(body), headers)
                response = connection.getresponse()
                if response.status != 200:
                    return _refused(response, time.perf_counter() - began)
                return _read(response, began)
            except (OSError, HTTPException) as error:
                why = f"{type(error).__name__}: {first_line(error)}"
                return Timed(0, None, time.perf_counter() - began, error=why)


def _refused(response: HTTPResponse, seconds: float) -> Timed:
    """Return an answer that is an error, with the server's own text."""
    written = response.read().decode("utf-8", "replace")
    try:
        text = str(json.loads(written)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = written
    return Timed(response.status, None, seconds, error=shortened(" ".join(text.split()), _LONGEST_TEXT))


def _read(response: HTTPResponse, began: float) -> Timed:
    """Read a stream of events to its end."""
    first: float | None = None
    text, usage, error, ended = "", {}, "", False
    for event in _events(response):
        if event is None:
            ended = True
            break
        if "error" in event:
            error = shortened(str(event["error"]), _LONGEST_TEXT)
        for choice in event.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                text += piece
                first = time.perf_counter() - began if first is None else first
        usage = event.get("usage") or usage
    seconds = time.perf_counter() - began
    if not ended and not error:
        error = "the answer broke off"
    return Timed(
        200 if not error else 0,
        first,
        seconds,
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("completion_tokens", 0)),
        text,
        error,
    )


def _events(response: HTTPResponse) -> Iterator[Mapping[str, Any] | None]:
    """Yield the data of server-sent events; None is the regular end."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            yield None
            return
        found = json.loads(data)
        if isinstance(found, dict):
            yield found
