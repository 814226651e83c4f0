#!/usr/bin/env python3
"""Measure what plans inside the decoder cost and save: `python benchmarks/depth.py`.

A prompt with one image of 576 tokens, or several such prompts. The prefill under `apply` is compared with the dense one
and with the ideal: ids and features to embeddings, then the same layers, each on as many columns as the plan leaves,
without plans and hooks. A step of decoding is compared with the dense one. All take turns in one process, so other work
on the machine affects them alike; ratios are medians of per-turn ratios. Each kind of prefill runs twice in its turn
and the second one counts, as in a process that serves one prompt after another.

The decoders: the embedded reference model's, and one of 0.5 billion parameters with random weights (Qwen2-0.5B's shape
in a LLaVA). On a GPU: --device cuda, with the shape of Vicuna-7B.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _common import DECODER_SHAPES, Clock, add_clock_options, llama_config, say
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate.bench.environment import environment
from foveate.engine import apply
from foveate.families import family_of
from foveate.files import write_json
from foveate.schedule import tokens_per_layer
from foveate.transformers_api import cache_argument

SHAPES = {
    **DECODER_SHAPES,
    "tiny": {"hidden": 64, "layers": 4, "heads": 2, "kv_heads": 2, "ffn": 128},
}


def main() -> int:
    arguments = read()
    torch.set_num_threads(arguments.threads)
    clock = Clock(arguments.device, arguments.clock)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for text in arguments.decoders:
            name, prompts = decoder_of(text)
            model, image_size = make(name, arguments.device)
            for spec in specs_for(arguments.specs, len(family_of(model).decoder_layers)):
                found = measure(model, image_size, spec, prompts, arguments, clock)
                rows.append({"decoder": name, "prompts": prompts, "spec": spec} | found)
                say(line(rows[-1]))
    result = {
        "what": "milliseconds (medians) and ratios (medians of each turn's own)",
        "text_tokens": arguments.words,
        "clock": arguments.clock,
        "rows": rows,
        "environment": {**environment(arguments.device, time.perf_counter() - began), "turns": arguments.turns},
    }
    write_json(arguments.out, result)
    say(f"{len(rows)} measurements in {result['environment']['seconds']} s: {arguments.out}")
    return 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--decoders",
        type=lambda text: text.split(","),
        help=f"reference, {', '.join(SHAPES)}; parted by commas; reference*8 takes eight prompts at once",
    )
    parser.add_argument(
        "--specs",
        nargs="*",
        default=["pool:0.25@{1/12}", "fastv:0.5@{1/12}", "stride:0.5@{1/4},{1/2},{3/4}"],
        help="layers may be written as shares of the depth: pool:0.25@{1/4}",
    )
    parser.add_argument("--words", type=int, default=64, help="text tokens of the prompt")
    parser.add_argument("--turns", type=int, default=4, help="at least")
    parser.add_argument("--seconds", type=float, default=15, help="at least, so small decoders take more turns")
    parser.add_argument("--steps", type=int, default=16, help="of decoding, per turn")
    add_clock_options(parser)
    parser.add_argument("--out", type=Path, default=Path("results/depth.json"))
    arguments = parser.parse_args()
    arguments.decoders = arguments.decoders or (
        ["7B"] if arguments.device == "cuda" else ["reference", "reference*8", "0.5B"]
    )
    unknown = sorted({decoder_of(text)[0] for text in arguments.decoders} - {"reference", *SHAPES})
    if unknown:
        parser.error(f"no decoder is called {', '.join(unknown)}; there are reference, {', '.join(SHAPES)}")
    if arguments.clock == "cpu" and arguments.device != "cpu":
        parser.error("--clock cpu doesn't see what a GPU does; use --clock wall")
    return arguments


def decoder_of(text: str) -> tuple[str, int]:
    """Return a decoder's name and its number of prompts per batch.

    >>> decoder_of("reference*8"), decoder_of("0.5B")
    (('reference', 8), ('0.5B', 1))
    """
    name, _, prompts = text.partition("*")
    return name, int(prompts) if prompts.isdigit() and int(prompts) else 1


def specs_for(texts: list[str], layers: int) -> list[str]:
    """Replace layers written as shares of the depth by numbers.

    >>> specs_for(["pool:0.25@{1/12}", "stride:0.5@{1/4},{1/2}"], 24)
    ['pool:0.25@2', 'stride:0.5@6,12']
    """
    found = []
    for text in texts:
        while "{" in text:
            before, _, rest = text.partition("{")
            share, _, after = rest.partition("}")
            part, _, whole = share.partition("/")
            text = f"{before}{max(1, round(layers * int(part) / int(whole)))}{after}"
        found.append(text)
    return found


def make(name: str, device: str) -> tuple[Any, int]:
    """Return a model with 576 visual tokens, and the side of its images in pixels."""
    if name == "reference":
        model, _ = foveate.reference()
        return model.to(device).eval(), int(model.config.vision_config.image_size)
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = llama_config(SHAPES[name], vocab_size=1024, max_position_embeddings=4096)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    return model.to(torch.float32 if device == "cpu" else torch.bfloat16).eval(), 336


def measure(
    model: Any, image_size: int, spec: str, prompts: int, arguments: argparse.Namespace, clock: Clock
) -> dict[str, Any]:
    """Measure one spec on one decoder: turns of dense, ideal and compressed."""
    family = family_of(model)
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(prompts, 3, image_size, image_size, generator=generator).to(device, dtype)
    layout = family.layouts({"pixel_values": pixels})[0]
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(10, 90, (prompts, arguments.words), generator=generator)
    half = arguments.words // 2
    image = torch.full((prompts, layout.total), family.image_token)
    ids = torch.cat([words[:, :half], image, words[:, half:]], dim=1).to(device)
    mask = torch.ones_like(ids)
    counts = tokens_per_layer(spec, family, layout)

    def prefill(output: Any) -> Any:
        cache = DynamicCache(config=model.config.get_text_config())
        model(
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": output},
            **cache_argument(model.forward, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        return cache

    def decode(cache: Any) -> None:
        whole, kept = mask, cache_argument(model.forward, cache)
        for _ in range(arguments.steps):
            whole = torch.cat([whole, whole[:, :1]], dim=1)
            model(input_ids=ids[:, :1], attention_mask=whole, **kept, use_cache=True, logits_to_keep=1)

    def ideal() -> None:
        features = torch.cat(list(dense_features.pooler_output))
        by_hand(model, ids, features, [count + arguments.words for count in counts])

    times: dict[str, list[float]] = {name: [] for name in ("dense", "ideal", "ours", "dense_step", "our_step", "plan")}
    dense_features = family.encode({"pixel_values": pixels})
    began = time.perf_counter()
    for turn in itertools.count():
        if turn > arguments.turns and time.perf_counter() - began > arguments.seconds:
            break
        caches: dict[str, Any] = {}
        prefill(dense_features)
        dense = clock(lambda: caches.update(dense=prefill(dense_features)))  # noqa: B023
        dense_step = clock(lambda: decode(caches["dense"])) / arguments.steps  # noqa: B023
        ideal()
        best = clock(ideal)
        with apply(model, spec, synchronise=True) as run:
            prefill(family.encode({"pixel_values": pixels}))
            made = run.report().milliseconds
            features = family.encode({"pixel_values": pixels})
            ours = clock(lambda: caches.update(ours=prefill(features)))  # noqa: B023
            our_step = clock(lambda: decode(caches["ours"])) / arguments.steps  # noqa: B023
        if turn:
            # The first turn warms up.
            values = (dense, best, ours, dense_step, our_step, run.report().milliseconds - made)
            for name, value in zip(times, values, strict=True):
                times[name].append(value)
    for layer, count in enumerate(counts):
        held = caches["ours"].get_seq_length(layer)
        assert held == count + arguments.words + arguments.steps, (layer, held, count)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    return {
        "turns": len(times["ours"]),
        "mean_over_layers": round(sum(counts) / len(counts), 1),
        **{f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()},
        "ours_to_ideal": round(ratio("ours", "ideal"), 4),
        "ours_to_dense": round(ratio("ours", "dense"), 4),
        "step_to_dense": round(ratio("our_step", "dense_step"), 4),
        "cache_to_dense": round(sum(counts) / (len(counts) * layout.total), 4),
    }


def by_hand(model: Any, ids: Tensor, features: Tensor, lengths: list[int]) -> Tensor:
    """Run the decoder's layers, each on its own number of columns; return the logits of the last column."""
    family = family_of(model)
    decoder: Any = family.decoder
    cache = DynamicCache(config=model.config.get_text_config())
    image = (ids == family.image_token)[..., None]
    hidden = model.get_input_embeddings()(ids)
    hidden = hidden.masked_scatter(image.expand_as(hidden), features.to(hidden.dtype))
    rotary: Any = None
    kept = cache_argument(decoder.layers[0].forward, cache)
    for layer, length in zip(decoder.layers, lengths, strict=True):
        if rotary is None or length != hidden.shape[1]:
            hidden = hidden[:, :length]
            rotary = decoder.rotary_emb(hidden, torch.arange(length, device=hidden.device)[None])
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, use_cache=True, **kept)
    return model.lm_head(decoder.norm(hidden)[:, -1:])


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['decoder']:>9} x {row['prompts']}  {row['spec']:<24} mean {row['mean_over_layers']:>6.1f}  "
        f"prefill dense {row['dense_ms']:>8.1f}  ideal {row['ideal_ms']:>8.1f}  ours {row['ours_ms']:>8.1f}  "
        f"plan {row['plan_ms']:>6.2f}  ours/ideal {row['ours_to_ideal']:.3f}  ours/dense {row['ours_to_dense']:.3f}  "
        f"step {row['our_step_ms']:>7.2f} ms, {row['step_to_dense']:.3f} of dense"
    )


if __name__ == "__main__":
    raise SystemExit(main())
