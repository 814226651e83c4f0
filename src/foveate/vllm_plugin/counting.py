"""What a server saves, counted while it serves: Prometheus counters on its /metrics page, and a line in its log."""

from __future__ import annotations

import threading
import time
from typing import Final

from prometheus_client import Counter
from vllm.logger import init_logger

from foveate.serving import ServedSpec, SpecChoice

_EVERY: Final = 10.0
"""Seconds between two lines of the log, at least."""
_OTHER: Final = "other"
"""The label of specs that requests made up: without a list of what they may name, there is no end of labels."""

_logger = init_logger("vllm.foveate")
_IMAGES: Final = Counter("foveate_images", "Images and clips in requests, by the spec that was applied.", ["spec"])
_BEFORE: Final = Counter(
    "foveate_visual_tokens_before", "Visual tokens that images and clips of requests would have had whole.", ["spec"]
)
_AFTER: Final = Counter("foveate_visual_tokens_after", "Visual tokens of images and clips of requests.", ["spec"])


class Savings:
    """Counts images and clips, and their tokens, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images = self._before = self._after = 0
        self._next = 0.0

    def count(self, choice: SpecChoice, spec: ServedSpec, before: int, after: int) -> None:
        """Count an image or clip.

        Args:
            choice: the specs of the server.
            spec: that was applied.
            before: tokens of the whole.
            after: tokens that are left.
        """
        known = spec is choice.default or spec in (choice.allowed or ())
        label = spec.text if known or spec.is_dense else _OTHER
        _IMAGES.labels(label).inc()
        _BEFORE.labels(label).inc(before)
        _AFTER.labels(label).inc(after)
        with self._lock:
            self._images += 1
            self._before += before
            self._after += after
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _EVERY
            images, whole, left = self._images, self._before / self._images, self._after / self._images
        _logger.info(
            "foveate: %d images since the start, each with %.1f of %.1f visual tokens on average: %.1f saved (%.0f%%)",
            *(images, left, whole, whole - left, 100 * (1 - left / whole)),
        )


SAVINGS: Final = Savings()
"""Those of this process, whatever processors it has."""
