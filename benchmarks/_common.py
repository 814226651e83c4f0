"""What several benchmarks need: clocks and a line of progress."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Final

import torch

CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by the name that `--clock` takes; "cpu" counts the time of all threads of this process."""


class Clock:
    """Times calls in milliseconds; on a GPU the device is waited for.

    Args:
        device: on which the calls run.
        name: of one of the `CLOCKS`.
    """

    def __init__(self, device: str, name: str) -> None:
        self.name = name
        self._device = torch.device(device)
        self._now = CLOCKS[name]

    def __call__(self, run: Callable[[], object]) -> float:
        """Return the time of one call."""
        self._wait()
        began = self._now()
        run()
        self._wait()
        return (self._now() - began) * 1e3

    def median(self, run: Callable[[], object]) -> float:
        """Return the median of up to seven calls after one more; a first call over two seconds counts alone."""
        first = self(run)
        if first > 2000:
            return first
        times: list[float] = []
        while len(times) < 3 or (len(times) < 7 and sum(times) < 1000):
            times.append(self(run))
        return statistics.median(times)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
