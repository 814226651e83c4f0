"""A sweep over numbers of requests at once, in which specs take turns wave by wave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final

from foveate.errors import FoveateError
from foveate.numbers import Between, check_whole
from foveate.scenes import scene
from foveate.server_load.client import Server, Timed, picture_url

MOST_REQUESTS: Final = 20_000
"""A sweep is no attack: more requests are refused."""
DENSE: Final = "dense"


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        specs: that requests name, in turns; the first is what the others are compared with. None is none.
        concurrency: how many requests are under way at once, one sweep for each.
        requests: of one wave.
        rounds: how many waves each spec has at each concurrency.
        new_tokens: of an answer; servers of vLLM give exactly so many.
        size: width and height of the images, in pixels.
        seed: of the first image. Every request of a round has an image of its own, so no cache helps.
        minutes: after which no further round begins.

    Raises:
        FoveateError: a number makes no sense, or there would be more than `MOST_REQUESTS`.
    """

    specs: tuple[str | None, ...] = (None,)
    concurrency: tuple[int, ...] = (1, 4, 8)
    requests: int = 16
    rounds: int = 3
    new_tokens: int = 16
    size: tuple[int, int] = (1024, 768)
    seed: int = 0
    minutes: float = 30.0

    def __post_init__(self) -> None:
        for number in self.concurrency:
            check_whole("concurrency", number, Between(1, 256))
        for name, most in (("requests", 10_000), ("rounds", 1_000), ("new_tokens", 100_000)):
            check_whole(name, getattr(self, name), Between(1, most))
        for number in self.size:
            check_whole("size", number, Between(8, 8192))
        if not self.specs or not self.concurrency:
            raise FoveateError("a load needs at least one spec and one concurrency")
        if len(set(self.specs)) < len(self.specs):
            raise FoveateError("each spec is measured once; name it once")
        if self.total > MOST_REQUESTS:
            raise FoveateError(
                f"{self.total:,} requests are more than {MOST_REQUESTS:,}; take fewer specs, rounds or requests"
            )

    @property
    def total(self) -> int:
        """How many requests are measured."""
        return sum(len(self.specs) * self.rounds * max(self.requests, number) for number in self.concurrency)


@dataclass(frozen=True)
class Wave:
    """Requests of one spec that were sent one after another, so many at once.

    Attributes:
        round: its number at this concurrency.
        concurrency: requests at once.
        spec: that they named.
        seconds: from the first request to the last answer.
        requests: with their times, in the order of the images.
    """

    round: int
    concurrency: int
    spec: str | None
    seconds: float
    requests: tuple[Timed, ...]

    @property
    def done(self) -> tuple[Timed, ...]:
        """The requests that were answered."""
        return tuple(each for each in self.requests if not each.error)

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return len(self.done) / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Sweep:
    """What a load brought.

    Attributes:
        load: what was asked.
        model: the name of the model.
        waves: in the order in which they ran.
        died: what is known if the server stopped answering; empty if it didn't.
        stopped: whether time ran out before all rounds.
    """

    load: Load
    model: str
    waves: list[Wave] = field(default_factory=list)
    died: str = ""
    stopped: bool = False


def run(server: Server, load: Load, progress: Callable[[int, int, str], None] | None = None) -> Sweep:
    """Send a load, and return what was measured, also if the server dies on the way.

    Before each sweep a few requests of each spec run unmeasured.

    Args:
        server: that gets it.
        load: what is sent.
        progress: is told after each wave how many requests are done, how many there are, and what runs.

    Raises:
        FoveateError: no server answers, or it refuses one of the specs.
    """
    sweep = Sweep(load, server.model())
    began, done = time.monotonic(), 0
    first_image = load.seed
    for number in load.concurrency:
        size = max(load.requests, number)
        for spec in load.specs:
            warm = _wave(server, sweep.model, load, 0, number, spec, _pictures(load, first_image, min(number, 4)))
            if _broke(server, sweep, warm, done):
                return sweep
            _check_answered(warm)
        first_image += 4
        for turn in range(load.rounds):
            if time.monotonic() - began > load.minutes * 60:
                sweep.stopped = True
                return sweep
            pictures = _pictures(load, first_image, size)
            first_image += size
            for place in range(len(load.specs)):
                # Whoever comes first in a round comes last in the next.
                spec = load.specs[(place + turn) % len(load.specs)]
                wave = _wave(server, sweep.model, load, turn, number, spec, pictures)
                sweep.waves.append(wave)
                done += len(wave.done)
                if progress is not None:
                    progress(done, load.total, f"{number} at once, {spec or 'no spec'}")
                if _broke(server, sweep, wave, done):
                    return sweep
    return sweep


def _pictures(load: Load, first: int, count: int) -> list[tuple[str, str]]:
    """Return images and questions about them, ready to be sent."""
    drawn = [scene(first + number) for number in range(count)]
    return [(picture_url(each.image.resize(load.size)), each.questions[0].text) for each in drawn]


def _wave(
    server: Server,
    model: str,
    load: Load,
    turn: int,
    concurrency: int,
    spec: str | None,
    pictures: Sequence[tuple[str, str]],
) -> Wave:
    """Send a wave; after an answer that broke off, no further request is sent to a server that isn't well."""
    gone = Event()

    def ask(picture: tuple[str, str]) -> Timed:
        if gone.is_set():
            return Timed(0, None, 0.0, error="not sent")
        options: dict[str, Any] = {"spec": spec, "new_tokens": load.new_tokens, "ignore_eos": True}
        made = server.ask(model, *picture, **options)
        if made.status == 0 and not server.answers():
            gone.set()
        return made

    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        answers = tuple(threads.map(ask, pictures))
    return Wave(turn, concurrency, spec, time.perf_counter() - began, answers)


def _broke(server: Server, sweep: Sweep, wave: Wave, done: int) -> bool:
    """Return whether the server stopped answering in a wave, and note it."""
    broken = [each for each in wave.requests if each.status == 0]
    if not broken or server.answers():
        return False
    sweep.died = (
        f"the server at {server.url} stopped answering after {done:,} answers, with {wave.concurrency} requests at "
        f"once ({broken[0].error})"
    )
    return True


def _check_answered(wave: Wave) -> None:
    """Check that a server takes the spec of a wave.

    Raises:
        FoveateError: it refused all its requests.
    """
    if wave.done:
        return
    refused = wave.requests[0]
    advice = ""
    if wave.spec is not None and "trust" in refused.error:
        advice = "; start it so that requests may name specs: foveate serve MODEL --allow SPEC"
    raise FoveateError(f"the server refuses {wave.spec or 'a request without a spec'}: {refused.error}{advice}")
