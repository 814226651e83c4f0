"""What several benchmarks need: clocks and their options, decoders of a given shape, lines of progress."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by the name that `--clock` takes; "cpu" counts the time of all threads of this process."""

DECODER_SHAPES: Final = {
    "0.5B": {"hidden": 896, "layers": 24, "heads": 14, "kv_heads": 2, "ffn": 4864},
    "7B": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "ffn": 11008},
}
"""Sizes of Llama-style decoders, by name."""


def link_features(out: Path, shared: Path) -> None:
    """Let a run keep its encoder features in a folder that several runs share; both folders are made."""
    for folder in (out, shared):
        folder.mkdir(parents=True, exist_ok=True)
    if not (out / "features").exists():
        (out / "features").symlink_to(os.path.relpath(shared, out), target_is_directory=True)


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


def add_clock_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--clock`."""
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts the processor's time of all threads, for machines that do other things",
    )


def check_clock(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse the processor's time where it isn't the time that a call takes: with several threads or on a GPU."""
    if arguments.clock == "cpu" and (arguments.threads > 1 or arguments.device != "cpu"):
        parser.error("--clock cpu counts the time of all threads: use it on the CPU with --threads 1")


def llama_config(shape: Mapping[str, int], **options: Any) -> Any:
    """Return the configuration of a Llama-style decoder.

    Args:
        shape: its sizes: hidden, layers, heads, kv_heads, ffn.
        **options: further fields of transformers' `LlamaConfig`.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"],
        **options,
    )


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
