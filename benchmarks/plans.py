#!/usr/bin/env python3
"""Measure the time of a plan against the prefill that it saves: `python benchmarks/plans.py`.

Every method that acts behind the encoder makes the plans of one image and of several, and applies them; beside it, in
the same run, the dense prefill of a decoder with random weights: on a CPU 0.5 billion parameters (Qwen2-0.5B's shape),
on a GPU 7 billion (Vicuna-7B's). The rules that their authors' code writes as loops are timed in that structure, too
(as_structured.py). Attention and keys are made up: what it takes to capture them is not in these times. Methods for
clips plan one clip, of which half is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _common import DECODER_SHAPES, Clock, add_clock_options, check_clock, llama_config, say
from as_structured import CLIP_RULES, RULES
from torch import Tensor

from foveate.bench.environment import environment
from foveate.files import write_json
from foveate.methods import Method, PixelMethod, method_class, method_names
from foveate.spec import parse
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    EncoderAttention,
    EncoderKeys,
    Layout,
    Pixels,
    RotaryLogits,
    Segment,
    Signals,
    Text,
    VisualTokens,
)

WORDS = 64
"""Text tokens of the prompt."""
HEADS = 8
DECODERS = {
    **DECODER_SHAPES,
    "tiny": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 128},
}
FOR_CLIPS = ("pool3d", "stride3d")
"""Methods that take images too, and are for clips."""
STRUCTURED_AT_MOST = {"agglomerative": 600}
"""The most tokens for rules whose structured form takes minutes on more."""


def main() -> int:
    arguments = read()
    torch.set_num_threads(arguments.threads)
    clock = Clock(arguments.device, arguments.clock)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    began = time.perf_counter()
    decoder = Decoder(arguments.decoder, arguments.device, dtype)
    prefill: dict[int, float] = {}
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for tokens in arguments.tokens:
            kept = max(1, round(tokens * arguments.keep))
            for count in (tokens, kept):
                prefill[count] = clock.median(lambda count=count: decoder(count + WORDS))
                say(f"prefill of {count} visual and {WORDS} text tokens: {prefill[count]:.1f} ms")
            for width in arguments.widths:
                for images in arguments.images:
                    saved = images * (prefill[tokens] - prefill[kept])
                    for row in measure(arguments, clock, tokens, kept, width, images, dtype):
                        rows.append(row | {"share": row["ms"] / saved if saved > 0 else None})
                        say(line(rows[-1]))
        for frames, each in arguments.clips if any(map(plans_clips, arguments.methods)) else ():
            tokens, kept = frames * each, frames * each // 2
            for count in (tokens, kept):
                prefill[count] = clock.median(lambda count=count: decoder(count + WORDS))
                say(f"prefill of {count} visual and {WORDS} text tokens: {prefill[count]:.1f} ms")
            saved = prefill[tokens] - prefill[kept]
            for row in measure_clip(arguments, clock, Segment(frames, *sides(each)), kept, dtype):
                rows.append(row | {"share": row["ms"] / saved if saved > 0 else None})
                say(line(rows[-1]))
    result = {
        "what": "milliseconds to make and apply plans; share: of the prefill that they save",
        "decoder": arguments.decoder,
        "words": WORDS,
        "clock": clock.name,
        "prefill_ms": {str(count): round(value, 2) for count, value in prefill.items()},
        "rows": [rounded(row) for row in rows],
        "environment": environment(arguments.device, time.perf_counter() - began),
    }
    write_json(arguments.out, result)
    say(f"\n{len(rows)} measurements in {result['environment']['seconds']} s: {arguments.out}")
    return 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--decoder", choices=DECODERS, help="0.5B on a CPU, 7B on a GPU")
    parser.add_argument("--tokens", default=[576, 2880], **integers, help="visual tokens of an image")
    parser.add_argument("--widths", default=[1024, 4096], **integers, help="of the features")
    parser.add_argument("--images", default=[1, 8], **integers, help="planned as one batch")
    parser.add_argument(
        "--clips", type=clip_sizes, default=[(64, 196)], metavar="NxN,NxN", help="frames x tokens; none"
    )
    parser.add_argument("--keep", type=float, default=1 / 9, help="share that is kept")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names; all if left out")
    add_clock_options(parser)
    parser.add_argument("--out", type=Path, default=Path("results/plans.json"))
    arguments = parser.parse_args()
    arguments.decoder = arguments.decoder or ("7B" if arguments.device == "cuda" else "0.5B")
    check_clock(parser, arguments)
    known = [name for name in method_names() if can_be_planned(name) or plans_clips(name)]
    unknown = sorted(set(arguments.methods or []) - set(known))
    if unknown:
        parser.error(f"no method after the encoder is called {', '.join(unknown)}; there are {', '.join(known)}")
    arguments.methods = arguments.methods or known
    return arguments


def clip_sizes(text: str) -> list[tuple[int, int]]:
    """Read the frames of clips and the tokens of each: "64x196,8x64"; "none" is no clip."""
    sizes = [each.split("x") for each in text.split(",") if text != "none"]
    return [(int(frames), int(each)) for frames, each in sizes]


def plans_clips(name: str) -> bool:
    """Return whether a method is for clips and takes a keep."""
    method = method_class(name)
    return (method.temporal or name in FOR_CLIPS) and method.takes_keep


def can_be_planned(name: str) -> bool:
    """Return whether a method acts on the tokens of an image and takes a keep."""
    method = method_class(name)
    return not (issubclass(method, PixelMethod) or method.temporal) and method.takes_keep


class Decoder:
    """A Llama-style decoder with random weights, without its head."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        from transformers import LlamaModel

        config = llama_config(DECODERS[name], vocab_size=8, max_position_embeddings=8192)
        torch.manual_seed(0)
        with torch.device(device):
            self.model: Any = LlamaModel(config).to(dtype).eval()
        self.width: int = config.hidden_size

    def __call__(self, tokens: int) -> object:
        parameter = next(self.model.parameters())
        return self.model(
            inputs_embeds=torch.zeros(1, tokens, self.width, dtype=parameter.dtype, device=parameter.device),
            use_cache=True,
        )


def measure(
    arguments: argparse.Namespace, clock: Clock, tokens: int, kept: int, width: int, images: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Measure all methods on features of one shape."""
    features = picture(images, tokens, width).to(arguments.device, dtype)
    text = torch.randn(images, WORDS, width, generator=torch.Generator().manual_seed(1)).to(arguments.device, dtype)
    rows: list[dict[str, Any]] = []
    for name in filter(can_be_planned, arguments.methods):
        method: Method = parse(f"{name}:{kept}").steps[0].method
        given = visual_tokens(method, features, text)

        def compress(method: Method = method, given: VisualTokens = given) -> Tensor:
            return method.plan(given).apply(given.features)

        row: dict[str, Any] = {"method": name, "tokens": tokens, "kept": kept, "width": width, "images": images}
        row["ms"] = clock.median(compress)
        if (
            name in RULES
            and arguments.device == "cpu"
            and images == 1
            and tokens <= STRUCTURED_AT_MOST.get(name, tokens)
        ):
            row["structured_ms"] = clock.median(lambda name=name: RULES[name](features[0], text[0], kept))
        rows.append(row)
    return rows


def measure_clip(
    arguments: argparse.Namespace, clock: Clock, grid: Segment, kept: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Measure all methods for clips on one clip, at the smallest width."""
    width = min(arguments.widths)
    features = picture(1, grid.count, width).to(arguments.device, dtype)
    text = torch.randn(1, WORDS, width, generator=torch.Generator().manual_seed(1)).to(arguments.device, dtype)
    rows: list[dict[str, Any]] = []
    for name in filter(plans_clips, arguments.methods):
        method: Method = parse(f"{name}:{kept}").steps[0].method
        given = visual_tokens(method, features, text, grid)

        def compress(method: Method = method, given: VisualTokens = given) -> Tensor:
            return method.plan(given).apply(given.features)

        row: dict[str, Any] = {"method": name, "tokens": grid.count, "kept": kept, "width": width, "images": 1}
        row |= {"frames": grid.t, "ms": clock.median(compress)}
        if name in CLIP_RULES and arguments.device == "cpu":
            frames = features.view(grid.t, -1, width)

            def structured(name: str = name, frames: Tensor = frames) -> Tensor:
                return features[0, CLIP_RULES[name](frames, kept)]

            row["structured_ms"] = clock.median(structured)
        rows.append(row)
    return rows


def picture(images: int, tokens: int, width: int) -> Tensor:
    """Return features `(B, N, D)` that are similar where they are near, as those of images are, with some noise."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(images, 64, width, generator=generator)
    place = torch.linspace(0, 63, tokens)[:, None] - torch.arange(64)
    amounts = (torch.rand(images, tokens, 64, generator=generator) * 4 - place.abs() / 4).softmax(dim=-1)
    return 3 * amounts @ things + 0.3 * torch.randn(images, tokens, width, generator=generator)


def visual_tokens(method: Method, features: Tensor, text: Tensor, grid: Segment | None = None) -> VisualTokens:
    """Return the features with random signals of every kind that the method needs.

    Without a grid they are those of a clip if the method is for clips alone, otherwise those of an image.
    """
    images, count, width = features.shape
    generator = torch.Generator().manual_seed(2)

    def some(*shape: int) -> Tensor:
        return torch.rand(images, *shape, generator=generator).to(features.device, features.dtype)

    answers: dict[Any, Tensor] = {}
    for signal in method.needs:
        match signal:
            case EncoderAttention():
                answers[signal] = some(count) / count
            case EncoderKeys():
                answers[signal] = some(count, min(width, 1024) if signal.heads == "full" else 64)
            case DecoderAttention():
                heads = (HEADS,) if signal.heads == "each" else ()
                words = (WORDS,) if signal.rows == "text" else ()
                answers[signal] = some(*heads, *words, count) / count
            case DecoderLogits():
                answers[signal] = some(count)
            case DecoderKeys():
                answers[signal] = some(count if signal.of == "visual" else WORDS, width)
            case DecoderInput():
                answers[signal] = features if signal.of == "visual" else text
            case RotaryLogits():
                answers[signal] = some(WORDS, count)
            case Pixels():
                answers[signal] = some(count, width)
            case Behind():
                answers[signal] = (torch.arange(WORDS) > 8).expand(images, -1).to(features.device)
            case Text():
                answers[signal] = text
    grid = grid or (clip(count) if method.temporal else Segment(1, *sides(count)))
    return VisualTokens(features, Layout((grid,)), Signals(answers))


def clip(count: int) -> Segment:
    """Return a clip of this many tokens, with frames of 256 or fewer, all of one shape."""
    each = next(each for each in range(min(256, count // 2), 0, -1) if count % each == 0)
    return Segment(count // each, *sides(each))


def sides(count: int) -> tuple[int, int]:
    """Return rows and columns of a grid of this many tokens, as square as possible."""
    rows = next(rows for rows in range(int(count**0.5), 0, -1) if count % rows == 0)
    return rows, count // rows


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def line(row: dict[str, Any]) -> str:
    structured = f"   as structured {row['structured_ms']:9.1f} ms" if "structured_ms" in row else ""
    share = "" if row["share"] is None else f"{row['share']:8.2%} of what it saves"
    shape = f"{row['images']} x {row['tokens']} x {row['width']} -> {row['kept']}"
    return f"{row['method']:16} {shape:24} {row['ms']:9.1f} ms {share}{structured}"


if __name__ == "__main__":
    sys.exit(main())
