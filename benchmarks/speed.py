#!/usr/bin/env python3
"""Measure the parts of a call's time, dense and compressed, in one run: `python benchmarks/speed.py`.

Models of real shapes with random weights answer prompts of pictures. Per spec: encoder, compressor, prefill, time to
the first token, decode per token, KV cache and peak memory, over numbers of visual tokens and batches.
Beside dense stand the ideal, which is the same decoder given as many tokens by hand, with nothing to decide, and the
structure in which methods that read attention are published: every attention map made and returned. All are measured
in turn, round after round.

On a CPU the model is Qwen2-0.5B behind CLIP-L/14, on a GPU LLaVA-1.5-7B, Qwen2.5-VL-7B and Qwen3-VL-8B in bfloat16:

    python benchmarks/speed.py --device cuda --out results/speed-gpu.json

The file is written after each model, picture and batch. The same command again goes on where it ended; `--within 540`
ends it in time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _common import CLOCKS, add_clock_options, check_clock, say
from every_method import every
from random_models import MODELS, REAL, Pictures, make, prompt
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from foveate.bench.environment import environment
from foveate.costmodel import cost_of_layouts, read_model
from foveate.costmodel import device as device_of
from foveate.costmodel.device import SIZES
from foveate.engine import apply, timed, timing
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.files import write_json
from foveate.spec import parse
from foveate.tokens import Layout, Segment
from foveate.transformers_api import cache_of_output

KEEP = 0.111
"""64 of 576."""
SPECS = (
    *(f"{name}:{KEEP}" for name in ("stride", "pool2d", "cls", "cluster", "divprune", "resize")),
    f"fastv:{KEEP}@2",
)
PARTS = ("encoder", "compressor", "prefill", "first_token", "per_token")
_MAPS_AT_MOST = 3 << 30
"""The most bytes of attention maps of all layers; beyond them the published structure is not measured."""


@dataclass
class Row:
    """One spec of a cell; times in milliseconds, one per round."""

    spec: str
    kept: int
    mean: float
    times: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    kv_bytes: int = 0
    peak_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        middle = {name: round(statistics.median(each), 3) for name, each in self.times.items() if each}
        rest = {"spec": self.spec, "kept": self.kept, "mean_over_layers": round(self.mean, 1)}
        return {**rest, "kv_bytes": self.kv_bytes, "peak_bytes": self.peak_bytes, **middle}


def main() -> int:
    arguments = read()
    torch.set_num_threads(arguments.threads)
    timing.clock = CLOCKS[arguments.clock]
    began = time.perf_counter()
    result = begin(arguments)
    done = {key(cell) for cell in result["cells"]}
    left = 0
    for name in arguments.models:
        made: tuple[int, Any] | None = None
        for pictures, batch in itertools.product(arguments.tokens, arguments.batch):
            asked = {"model": name, "pictures": str(pictures), "batch": batch, "text_tokens": arguments.text_tokens}
            asked |= {"dtype": arguments.dtype, "specs": arguments.specs}
            if key(asked) in done:
                continue
            if time.perf_counter() - began > arguments.within:
                left += 1
                continue
            try:
                if made is None or made[0] != pictures.tokens:
                    made = None
                    made = pictures.tokens, make(name, pictures, arguments.device, dtype(arguments), arguments.share)
                result["cells"].append(measure(arguments, made[1], asked, pictures))
            except FoveateError as error:
                sys.exit(str(error))
            except torch.OutOfMemoryError:
                say(f"{name}, {pictures} tokens, batch {batch}: out of memory")
                torch.cuda.empty_cache()
                result["cells"].append({**asked, "out_of_memory": True, "rows": []})
            result["environment"]["seconds"] += round(time.perf_counter() - began - result["environment"]["seconds"])
            write_json(arguments.out, result)
    say(f"\n{len(result['cells'])} cells: {arguments.out}" + (f"; {left} left, run this again" if left else ""))
    return 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--models", type=lambda text: text.split(","), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--dtype", choices=SIZES, help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--tokens", default="576", help="visual tokens of a prompt: 576 is one picture, 4x576 are four; by commas"
    )
    parser.add_argument("--batch", default=[1], **integers, help="prompts at once")
    parser.add_argument(
        "--specs",
        type=lambda text: text.split(" "),
        default=list(SPECS),
        help="specs, by blanks; every: one per method",
    )
    parser.add_argument("--text-tokens", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--enough", type=float, default=60, help="seconds of a cell after which no round begins")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no cell begins")
    add_clock_options(parser)
    parser.add_argument("--share", action="store_true", help="one layer's weights for all: for small memories")
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"), help="goes on if it is there")
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    if gpu and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu measures here")
    arguments.models = arguments.models or (list(REAL) if gpu else ["0.5B"])
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    unknown = sorted(set(arguments.models) - set(MODELS))
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(MODELS)}")
    try:
        arguments.tokens = [Pictures.read(each) for each in arguments.tokens.split(",")]
    except ValueError as error:
        parser.error(f"--tokens {error}")
    for name in ("batch", "rounds", "text_tokens"):
        value = getattr(arguments, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if arguments.new_tokens < 2:
        parser.error("--new-tokens must be 2 or more: the first comes from the prefill, and decoding is measured too")
    check_clock(parser, arguments)
    if arguments.specs == ["every"]:
        arguments.specs = every(24, KEEP)
    try:
        for spec in arguments.specs:
            parse(spec)
    except FoveateError as error:
        parser.error(str(error))
    return arguments


def dtype(arguments: argparse.Namespace) -> torch.dtype:
    return getattr(torch, arguments.dtype)


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a cell."""
    return tuple(cell[name] for name in ("model", "pictures", "batch", "text_tokens", "dtype")) + tuple(cell["specs"])


def begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the earlier measurements of this machine, or an empty result."""
    told = {**environment(arguments.device, 0), "clock": arguments.clock}
    if arguments.out.is_file():
        held = json.loads(arguments.out.read_text(encoding="utf-8"))
        differs = [
            name for name in ("device", "processor", "threads", "clock") if held["environment"].get(name) != told[name]
        ]
        if differs:
            sys.exit(f"{arguments.out} was measured with another {' and '.join(differs)}; give another --out")
        return held
    return {
        "what": "medians over rounds, milliseconds; peak_bytes: tensors beside the weights; ideal_prefill: the decoder "
        "given as many tokens by hand; maps: eager attention, all maps returned",
        "cells": [],
        "environment": told,
    }


def measure(arguments: argparse.Namespace, network: Any, asked: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """Measure one cell: all specs in turn, round by round, after one round for warm-up and memory."""
    batch = asked["batch"]
    inputs = prompt(network, pictures, batch, arguments.text_tokens)
    shapes = read_model(network.config)
    shown = [Layout((Segment(1, pictures.side, pictures.side),))] * pictures.count
    rows = []
    for spec in (None, *arguments.specs):
        told = cost_of_layouts(
            shapes, spec, shown, arguments.text_tokens, arguments.new_tokens, batch, device_of("h100")
        )
        rows.append(Row(told.spec, told.kept_tokens, told.mean_over_layers))
    ideal: dict[int, list[float]] = {row.kept: [] for row in rows if row.mean == row.kept and row.spec != "dense"}
    title = f"{asked['model']}, {pictures} tokens, batch {batch}"
    for row in rows:
        once(arguments, network, inputs, row)
    say(f"{title}: warmed up")
    began, rounds = timing.clock(), 0
    while rounds < arguments.rounds and (not rounds or timing.clock() - began < arguments.enough):
        for row in rows:
            times = once(arguments, network, inputs, row, keep=True)
            for part, value in times.items():
                row.times[part].append(value)
        for kept, times in ideal.items():
            times.append(by_hand(arguments, network, kept, batch))
        rounds += 1
    cell = {**asked, "tokens": pictures.total, "new_tokens": arguments.new_tokens, "rounds": rounds}
    cell |= {"shared_weights": arguments.share, "threads": torch.get_num_threads()}
    cell["rows"] = [row.to_dict() for row in rows]
    for row in cell["rows"]:
        if row["kept"] in ideal and row["spec"] != "dense" and row["mean_over_layers"] == row["kept"]:
            row["ideal_prefill"] = round(statistics.median(ideal[row["kept"]]), 3)
    cell["maps"] = with_maps(arguments, network, inputs, asked)
    for row in cell["rows"]:
        names = (*PARTS, "ideal_prefill")
        say(f"  {row['spec']:24s}" + "  ".join(f"{name} {row[name]:.1f}" for name in names if name in row))
    say(f"  {rounds} rounds; with maps: {cell['maps']}")
    return cell


class FirstToken:
    """Records when the first logits are there; a logits processor that changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seen: float | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self.seen is None:
            self.seen = timing.now(self.device)
        return scores


@torch.inference_mode()
def once(
    arguments: argparse.Namespace, network: Any, inputs: dict[str, Tensor], row: Row, keep: bool = False
) -> dict[str, float]:
    """Run one call of one spec; if it isn't kept, measure memory instead of time."""
    device = inputs["input_ids"].device
    applied = nullcontext() if row.spec == "dense" else apply(network, row.spec, synchronise=True)
    first = FirstToken(device)
    with applied as run, timed(network) as times, nullcontext() if keep else Peak(device) as peak:
        began = timing.now(device)
        output = network.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=arguments.new_tokens if keep else 2,
            logits_processor=[first],
            return_dict_in_generate=True,
        )
    if peak is not None:
        row.peak_bytes = peak.bytes
        return {}
    assert first.seen is not None
    row.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_of_output(output).layers)
    return {
        "encoder": times.encoder,
        "compressor": 0.0 if run is None else run.report().milliseconds,
        "prefill": times.prefill,
        "first_token": (first.seen - began) * 1e3,
        "per_token": times.decode / times.decode_tokens,
    }


class Peak:
    """Measure the peak bytes of tensors in the block, without those that existed before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.seen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.seen.__exit__(*error)
        if error[0] is None:
            events: Any = self.seen.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
            memory = sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns())
            self.bytes = max(itertools.accumulate((each.nbytes() for each in memory), initial=0))


@torch.inference_mode()
def by_hand(arguments: argparse.Namespace, network: Any, kept: int, batch: int) -> float:
    """Run the prefill of a prompt that has only the kept tokens."""
    width = network.config.text_config.hidden_size
    embeds = torch.randn(batch, kept + arguments.text_tokens, width, device=arguments.device).to(dtype(arguments))
    with timed(network) as times:
        family_of(network).decoder(inputs_embeds=embeds, use_cache=True)
    return times.prefill


@torch.inference_mode()
def with_maps(
    arguments: argparse.Namespace, network: Any, inputs: dict[str, Tensor], asked: dict[str, Any]
) -> dict[str, float] | None:
    """Measure encoder and dense prefill with eager attention that returns its maps; None if memory is too small."""
    text = network.config.text_config
    rows, columns = inputs["input_ids"].shape
    maps = text.num_hidden_layers * text.num_attention_heads * rows * columns**2 * SIZES[arguments.dtype]
    if maps > _MAPS_AT_MOST:
        return None
    network.set_attn_implementation("eager")
    try:
        found: list[Any] = []
        for _ in range(2):
            with timed(network) as times:
                network(**inputs, use_cache=True, logits_to_keep=1, output_attentions=True)
            found.append(times)
        return {"encoder": round(found[-1].encoder, 3), "prefill": round(found[-1].prefill, 3), "bytes": maps}
    finally:
        network.set_attn_implementation("sdpa")


if __name__ == "__main__":
    sys.exit(main())
