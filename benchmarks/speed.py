#!/usr/bin/env python3
"""Where the time of a call goes, dense and compressed, in one run: `python benchmarks/speed.py`.

A LLaVA of real shapes with random weights answers prompts of one image. Per spec: encoder, compressor, prefill, decode
per token, KV cache and peak memory, over numbers of visual tokens and batches. Beside dense stands the ideal: the same
decoder given as many tokens by hand, with nothing to decide. All are measured in turn, round after round. On a CPU the
decoder has 0.5 billion parameters (Qwen2-0.5B's shape), on a GPU 7 billion (Vicuna-7B's), in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.cost import device as device_of
from foveate.cost import read_model
from foveate.cost.device import SIZES
from foveate.cost.estimate import count
from foveate.engine import apply, timed
from foveate.errors import FoveateError
from foveate.models import family_of
from foveate.spec import parse

PATCH = 14
IMAGE_TOKEN = 5
SHAPES = {
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    },
    "0.5B": {
        "text": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "7B": {
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
}
SPECS = ("stride:0.25", "pool2d:0.25", "cls:0.25", "cluster:0.25", "divprune:0.25", "resize:0.25", "fastv:0.25@2")
PARTS = ("encoder", "compressor", "prefill", "per_token")


@dataclass
class Row:
    """One spec at one number of tokens and one batch; times in milliseconds, one per round."""

    spec: str
    tokens: int
    kept: int
    batch: int
    times: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in (*PARTS, "ideal_prefill")})
    kv_bytes: int = 0
    peak_bytes: int | None = None
    predicted_prefill: float | None = None

    def to_dict(self) -> dict[str, Any]:
        middle = {name: round(statistics.median(each), 3) if each else None for name, each in self.times.items()}
        rest = {name: getattr(self, name) for name in ("spec", "tokens", "kept", "batch", "kv_bytes", "peak_bytes")}
        predicted = None if self.predicted_prefill is None else round(self.predicted_prefill, 3)
        return {**rest, **middle, "predicted_prefill": predicted, "rounds": len(self.times["prefill"])}


def main() -> int:
    arguments = read()
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    rows: list[Row] = []
    try:
        for tokens in arguments.tokens:
            network = make(arguments, tokens)
            for batch in arguments.batch:
                rows += measure(arguments, network, tokens, batch)
            del network
    except FoveateError as error:
        sys.exit(str(error))
    result = {
        "what": "medians over rounds, milliseconds; ideal_prefill: the decoder given as many tokens by hand",
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "text_tokens": arguments.text_tokens,
        "new_tokens": arguments.new_tokens,
        "predicted_on": arguments.predict,
        "rows": [row.to_dict() for row in rows],
        "environment": environment(arguments, time.perf_counter() - began),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.out.with_suffix(".partial")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(arguments.out)
    say(f"\n{len(rows)} rows in {time.perf_counter() - began:.0f} s: {arguments.out}")
    return 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", choices=SHAPES, help="0.5B on a CPU, 7B on a GPU")
    parser.add_argument("--dtype", choices=SIZES, help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--tokens", default=[576], **integers, help="visual tokens of an image: squares, 64 to 16384")
    parser.add_argument("--batch", default=[1], **integers, help="prompts at once")
    parser.add_argument("--specs", type=lambda text: text.split(" "), default=list(SPECS), help="specs, by blanks")
    parser.add_argument("--text-tokens", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--predict", help="a device of foveate cost: its predicted prefill stands beside the measured")
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    arguments.shape = arguments.shape or ("7B" if gpu else "0.5B")
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    for tokens in arguments.tokens:
        if tokens < 1 or round(tokens**0.5) ** 2 != tokens:
            parser.error(f"--tokens {tokens} is no square; 64, 576, 2304, 9216 and 16384 are")
    for name in ("batch", "rounds", "new_tokens", "text_tokens"):
        value = getattr(arguments, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if arguments.new_tokens < 2:
        parser.error("--new-tokens must be 2 or more: the first comes from the prefill, and decoding is measured too")
    try:
        for spec in arguments.specs:
            parse(spec)
        if arguments.predict:
            device_of(arguments.predict).rate(arguments.dtype)
    except FoveateError as error:
        parser.error(str(error))
    return arguments


def make(arguments: argparse.Namespace, tokens: int) -> Any:
    """A LLaVA whose images have so many tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = SHAPES[arguments.shape]
    longest = tokens + arguments.text_tokens + arguments.new_tokens
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape["vision"], image_size=PATCH * round(tokens**0.5), patch_size=PATCH),
        text_config=LlamaConfig(**shape["text"], vocab_size=32_064, max_position_embeddings=longest),
        image_token_id=IMAGE_TOKEN,
    )
    torch.manual_seed(0)
    with torch.device(arguments.device):
        network: Any = LlavaForConditionalGeneration(config).to(getattr(torch, arguments.dtype)).eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    return network


def measure(arguments: argparse.Namespace, network: Any, tokens: int, batch: int) -> list[Row]:
    """All specs in turn, as many rounds as were asked for after one to warm up."""
    family = family_of(network)
    inputs = prompt(arguments, network, tokens, batch)
    (layout, *_) = family.layouts(inputs)
    place = device_of(arguments.predict) if arguments.predict else None
    shapes = read_model(network.config)
    picture = shapes.vision.sizing.picture(336, 336)
    rows = []
    for spec in (None, *arguments.specs):
        told = count(
            shapes,
            spec,
            [picture],
            arguments.text_tokens,
            arguments.new_tokens,
            batch,
            place or device_of("h100"),
            None if place is None else arguments.dtype,
        )
        row = Row(told.spec, layout.total, told.kept_tokens, batch)
        row.predicted_prefill = told.part("prefill").seconds * 1e3 if place else None
        rows.append(row)
        if len(set(told.layers)) > 1:
            # By hand there is one number of tokens for all layers.
            row.times.pop("ideal_prefill")
    for number in range(arguments.rounds + 1):
        for row in rows:
            once(arguments, network, inputs, row, keep=number > 0)
        say(f"{tokens} tokens, batch {batch}: {'warmed up' if not number else f'round {number}'}")
    for row in rows:
        told = row.to_dict()
        say(
            "  "
            + f"{row.spec:24s}"
            + "  ".join(f"{name} {told[name]}" for name in (*PARTS, "ideal_prefill") if name in told)
        )
    return rows


def prompt(arguments: argparse.Namespace, network: Any, tokens: int, batch: int) -> dict[str, Tensor]:
    """Text, image, text."""
    side = PATCH * round(tokens**0.5)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(100, 32_000, (batch, arguments.text_tokens), generator=generator)
    image = torch.full((batch, tokens), IMAGE_TOKEN)
    half = arguments.text_tokens // 2
    ids = torch.cat([text[:, :half], image, text[:, half:]], dim=1)
    pixels = torch.randn(batch, 3, side, side, generator=generator).to(getattr(torch, arguments.dtype))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(arguments.device) for name, value in found.items()}


@torch.inference_mode()
def once(arguments: argparse.Namespace, network: Any, inputs: dict[str, Tensor], row: Row, keep: bool) -> None:
    """One call of one spec, and the ideal beside it."""
    gpu = arguments.device.startswith("cuda")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    dense = row.spec == "dense"
    with nullcontext() if dense else apply(network, row.spec, synchronise=True) as run, timed(network) as times:
        output = network.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=arguments.new_tokens,
            min_new_tokens=arguments.new_tokens,
            return_dict_in_generate=True,
        )
    row.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    row.peak_bytes = torch.cuda.max_memory_allocated() if gpu else None
    del output
    if not keep:
        return
    row.times["encoder"].append(times.encoder)
    row.times["compressor"].append(0.0 if run is None else run.report().milliseconds)
    row.times["prefill"].append(times.prefill)
    row.times["per_token"].append(times.decode / times.decode_tokens)
    if "ideal_prefill" in row.times:
        row.times["ideal_prefill"].append(ideal(arguments, network, row))


def ideal(arguments: argparse.Namespace, network: Any, row: Row) -> float:
    """The prefill of a prompt that has the kept tokens alone, given by hand."""
    decoder = family_of(network).decoder
    tokens = row.kept + arguments.text_tokens
    width = network.config.text_config.hidden_size
    embeds = torch.randn(row.batch, tokens, width, device=arguments.device).to(getattr(torch, arguments.dtype))
    with timed(network) as times:
        decoder(inputs_embeds=embeds, use_cache=True)
    return times.prefill


def environment(arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    gpu = arguments.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "foveate")},
        "python": platform.python_version(),
        "seconds": round(seconds),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
