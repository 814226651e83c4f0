"""Measure the speed of a device: matrix products, attention, elementwise operations and kernel launches."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear as product
from torch.nn.functional import scaled_dot_product_attention, silu

from foveate.costmodel.decoder_shape import read_decoder
from foveate.costmodel.device import SIZES, Device, processor
from foveate.costmodel.ops import CallPart, elementwise, norm, rotary
from foveate.devices import synchronize, usable_device, usable_dtype
from foveate.errors import FoveateError, quoted

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, WIDER = 1024, 4096
_ROWS = (4, 16, 64, 256, 1024)
_QUERIES = (16, 64, 256, 1024)
_BETWEEN = (256, 1024, 4096)
_HEADS, _HEAD = 8, 64
_TURN = 0.005


@dataclass
class Probe:
    """Work that is timed repeatedly; the shortest time counts, since disturbances only add to it.

    Attributes:
        name: of the work.
        run: does the work once.
        seconds: the shortest time so far.
        times: how many times it was timed.
    """

    name: str
    run: Callable[[], object]
    seconds: float = float("inf")
    times: int = field(default=0, repr=False)


def measure(probes: Sequence[Probe], device: torch.device, budget: float = 20.0) -> None:
    """Time probes in turn, round after round, so that a busy minute of the machine affects all of them.

    On a CPU with one thread, time is the CPU time of the thread, which leaves other programs out. With several threads,
    and on accelerators, it is wall-clock time.

    Args:
        probes: to time; each runs at least three times.
        device: where they run.
        budget: seconds after which no further round begins.
    """
    began = time.perf_counter()
    rounds = 0
    with torch.inference_mode():
        while rounds < 3 or time.perf_counter() - began < budget:
            for probe in probes:
                # Short work runs several times in a row, so that its data is in the caches again.
                turn = time.perf_counter()
                while True:
                    synchronize([device])
                    start = _now(device)
                    probe.run()
                    synchronize([device])
                    probe.seconds = min(probe.seconds, _now(device) - start)
                    probe.times += 1
                    if time.perf_counter() - turn > _TURN:
                        break
            rounds += 1


def _now(device: torch.device) -> float:
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


class Calibration:
    """The probes of one device in one data type.

    Args:
        place: a torch device: "cpu", "cuda", "cuda:1"; "auto" is the GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        FoveateError: this machine has no such device, the data type is unknown, or the device can't compute in it.
    """

    def __init__(self, place: str = "cpu", dtype: str | None = None) -> None:
        self.place = usable_device(place)
        self.dtype = ("float32" if self.place.type == "cpu" else "bfloat16") if dtype is None else dtype
        if self.dtype not in SIZES:
            raise FoveateError(f"there is no data type {quoted(self.dtype)} here; use {', '.join(SIZES)}")
        usable_dtype(self.dtype, self.place)
        # Enough weights that none of them is still in a cache at its next turn.
        weights = [self._numbers(WIDER, WIDTH) for _ in range(16 if self.place.type == "cpu" else 64)]
        turns = itertools.cycle(weights)

        def next_weight() -> Tensor:
            return next(turns)

        self.products = {rows: self._product(rows, next_weight) for rows in (1, *_ROWS)}
        self.attention = {queries: self._attention(queries) for queries in _QUERIES}
        self.elementwise = [self._elementwise(rows) for rows in _BETWEEN]
        self.launching, self._launches = self._launch()

    @property
    def probes(self) -> list[Probe]:
        """All probes, for `measure`."""
        between = (probe for probe, _ in self.elementwise)
        return [*self.products.values(), *self.attention.values(), *between, self.launching]

    def device(self, name: str) -> Device:
        """Return the device that the probes describe, after they were measured."""
        size = SIZES[self.dtype]
        # Every product reads the weights; with one row some data types have slow kernels.
        bandwidth = WIDTH * WIDER * size / min(probe.seconds for probe in self.products.values())
        reading = 0.0 if self.place.type != "cpu" else WIDTH * WIDER * size / bandwidth
        speeds = {
            rows: 2 * rows * WIDTH * WIDER / max(probe.seconds - reading, probe.seconds / 10)
            for rows, probe in self.products.items()
            # If reading the weights takes nearly all the time, the rest is noise.
            if rows == _ROWS[-1] or probe.seconds > 1.3 * reading
        }
        rate = max(speeds.values())
        return Device(
            name=name,
            title=self._title(),
            rates={self.dtype: rate},
            bandwidth=bandwidth,
            memory=self._memory(),
            launch=self.launching.seconds / self._launches,
            overlap=self.place.type != "cpu",
            products=_rising((rows, speed / rate) for rows, speed in speeds.items()),
            attention=_rising(
                (queries, 4 * _HEADS * queries**2 * _HEAD / probe.seconds / rate)
                for queries, probe in self.attention.items()
            ),
            elementwise=tuple(
                (part.moved / part.launches, part.moved / probe.seconds) for probe, part in self.elementwise
            ),
            source=f"foveate calibrate, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}",
            measured=True,
        )

    def _numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.place).to(getattr(torch, self.dtype))

    def _product(self, rows: int, next_weight: Callable[[], Tensor]) -> Probe:
        left = self._numbers(rows, WIDTH)
        return Probe(f"product of {rows} rows", lambda: product(left, next_weight()))

    def _attention(self, queries: int) -> Probe:
        q, k, v = (self._numbers(1, _HEADS, queries, _HEAD) for _ in range(3))
        return Probe(f"attention of {queries}", lambda: scaled_dot_product_attention(q, k, v, is_causal=True))

    def _elementwise(self, rows: int) -> tuple[Probe, CallPart]:
        """Return the work of a decoder layer between its products, in transformers' code, and its count."""
        from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

        width, size = _HEADS * _HEAD // 2, SIZES[self.dtype]
        normed = LlamaRMSNorm(width).to(self.place, getattr(torch, self.dtype))
        token, gate, up = (
            self._numbers(1, rows, width),
            self._numbers(1, rows, 2 * width),
            self._numbers(rows, 2 * width),
        )
        query, key = (self._numbers(1, rows, _HEADS // 2, _HEAD).transpose(1, 2) for _ in range(2))
        cosine, sine = self._numbers(1, rows, _HEAD), self._numbers(1, rows, _HEAD)

        def run() -> object:
            turned = apply_rotary_pos_emb(query, key, cosine, sine)
            first = token + normed(token)
            return turned, silu(gate) * up, first + normed(first)

        ops = (
            *(norm(rows, width), norm(rows, width)),
            rotary(rows, 2 * width, size),
            elementwise("activation", rows * 2 * width, 5, size, launches=2),
            elementwise("residual", rows * width, 6, size, launches=2),
        )
        return Probe(f"between products, {rows} rows", run), CallPart("elementwise", ops)

    def _launch(self) -> tuple[Probe, int]:
        """Return a decoder so small that only launches take time, and its number of launches."""
        from transformers import AutoModel, LlamaConfig

        config = LlamaConfig(
            vocab_size=8,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        model: Any = AutoModel.from_config(config).to(self.place, getattr(torch, self.dtype)).eval()
        # One row and several rows are multiplied by different kernels.
        tokens = self._numbers(1, 8, 32)
        part = read_decoder(config).prefill([8] * 4, 1, SIZES[self.dtype])
        return Probe("launches", lambda: model(inputs_embeds=tokens, use_cache=True)), part.launches

    def _memory(self) -> float:
        if self.place.type == "cuda":
            return float(torch.cuda.get_device_properties(self.place).total_memory)
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 16e9

    def _title(self) -> str:
        if self.place.type == "cuda":
            return torch.cuda.get_device_name(self.place)
        threads = torch.get_num_threads()
        return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _rising(points: Any) -> tuple[tuple[float, float], ...]:
    """Return a curve that never falls: where a larger size seems slower, something disturbed the measurement."""
    best = 0.0
    curve: list[tuple[float, float]] = []
    for x, y in sorted(points):
        best = max(best, y)
        curve.append((float(x), best))
    return tuple(curve)


def calibrate(name: str = "this-machine", place: str = "cpu", dtype: str | None = None, budget: float = 20.0) -> Device:
    """Measure a device of this machine, in less than a minute.

    Args:
        name: of the device.
        place: a torch device.
        dtype: the data type to measure in; None is float32 on a CPU and bfloat16 elsewhere.
        budget: about how many seconds to measure.

    Raises:
        FoveateError: this machine has no such device.
    """
    calibration = Calibration(place, dtype)
    measure(calibration.probes, calibration.place, budget)
    return calibration.device(name)
