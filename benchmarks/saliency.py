#!/usr/bin/env python3
"""Measure how far attention can be trusted to choose visual tokens: `python benchmarks/saliency.py`.

The study of Token Sequence Compression (arXiv 2504.17892) on the embedded model and generated scenes, whose things have
known places: how much attention maps change between layers, questions and slightly noisy images; whether their highest
places are where the things are, and the one that is asked about; where in the picture attention falls; and what answers
are right when the tokens with the highest or the lowest attention, or random ones, are all that is left.

Maps are made in chunks of images, each with its own file in --runs, and answers by `foveate.bench`, so an interrupted
run goes on. The result is docs/measured/saliency.json, from which `python docs/make.py saliency` makes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _common import say
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import foveate
from foveate.bench import Benchmark, scenes
from foveate.bench.environment import environment
from foveate.bench.statistics import value_interval
from foveate.files import write_json
from foveate.fingerprint import model_fingerprint
from foveate.methods import VisualTokens, register
from foveate.methods.cls import Cls
from foveate.methods.fastv import FastV
from foveate.prompts import question_inputs
from foveate.saliency import Saliency, attention_maps, overlap, rank_correlation, thirds
from foveate.scenes import Scene
from foveate.scenes import test_set as scenes_test_set
from foveate.scenes.questions import described

ROOT = Path(__file__).parents[1]
KEPT: Final = 64
"""Tokens that count as the highest: 11 % of 576, as in the paper."""
NOISE: Final = 2
"""Standard deviation of the noise on pixels, of 255: nobody sees it."""
LAYERS: Final = (1, 2, 4, 6, 8)
"""Layers at whose input tokens are taken away; the attention is that of the layer before."""


@register("unsalient")
@dataclass(frozen=True)
class Unsalient(FastV):
    """Keep the tokens with the lowest attention from the prompt's last token: the opposite of `fastv`."""

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention with its sign turned."""
        return -super().score(tokens)


@register("uncls")
@dataclass(frozen=True)
class Uncls(Cls):
    """Keep the tokens with the lowest [CLS] attention: the opposite of `cls`."""

    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Return the attention with its sign turned."""
        return -super().score(tokens)


def main() -> int:
    """Measure what is missing, and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=80, help="scenes whose maps are compared")
    parser.add_argument("--questions", type=int, default=400, help="questions that are answered with few tokens")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "saliency")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "saliency.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = foveate.reference()
    runs = arguments.runs / model_fingerprint(model.model)
    runs.mkdir(parents=True, exist_ok=True)
    found = []
    for number, scene in zip(range(arguments.images), scenes_test_set()):
        file = runs / f"{scene.id}.json"
        if not file.exists():
            write_json(file, of_scene(model, processor, scene))
            say(f"{number + 1} of {arguments.images} images")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    task = scenes(arguments.questions)
    bench = Benchmark(model, processor, task, specs(), runs / f"answers-{arguments.questions}", longest=16)
    metrics = bench.run(lambda what, done, total: say(f"{done} of {total} parts: {what}"))
    write_json(
        arguments.out,
        {
            "images": arguments.images,
            "kept": KEPT,
            "tokens": 576,
            "noise": NOISE,
            "layers": len(found[0]["layers"]["previous_rank"]) + 1,
            "maps": {name: summary(name, found) for name in found[0]["layers"]},
            "encoder": {name: interval([each["encoder"][name] for each in found]) for name in found[0]["encoder"]},
            "thirds": np.mean([each["thirds"] for each in found], axis=0).round(4).tolist(),
            "answers": {
                "questions": metrics["questions"],
                "images": metrics["images"],
                "floor": metrics["floor"]["overall"],
                "rows": [
                    {key: row[key] for key in ("spec", "tokens", "accuracy", "difference")}
                    for row in metrics["configurations"]
                ],
                "pairs": metrics["pairs"],
            },
            "environment": environment(torch.device("cpu"), 0.0),
        },
    )
    say(f"wrote {arguments.out}")
    return 0


def specs() -> list[str]:
    """Return the configurations whose answers are compared."""
    inside = [f"{name}:{KEPT}@{layer}" for layer in LAYERS for name in ("fastv", "unsalient", "random", "cluster")]
    return [*(f"{name}:{KEPT}" for name in ("cls", "uncls", "random", "stride", "cluster")), *inside]


def of_scene(model: Any, processor: Any, scene: Scene) -> dict[str, Any]:
    """Return what is compared of one scene: per layer, or per neighbouring pair of layers."""
    about = {name: thing for thing, name in described(scene.things)}
    asked = [(each.text, next((about[name] for name in about if name in each.text), None)) for each in scene.questions]
    # A question about a thing first, if there is one, and another that says something else.
    asked.sort(key=lambda each: each[1] is None)
    (first, thing), (second, _) = asked[0], asked[-1]
    maps = [looked(model, processor, scene.image, text) for text in (first, second)]
    rng = np.random.default_rng(0)
    noisy = np.asarray(scene.image, dtype=np.float64) + rng.normal(0, NOISE, (*scene.image.size[::-1], 3))
    shaken = looked(model, processor, Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)), first)
    one, other = maps
    side = one.layout.segments[0].h
    every = torch.stack([inked([each.box], side, scene.image.width) for each in scene.things]).any(dim=0)
    single = None if thing is None else inked([thing.box], side, scene.image.width)
    layers: dict[str, list[float | None]] = {
        "previous_rank": [float(rank_correlation(b, a)) for a, b in pairwise(one.decoder)],
        "previous_overlap": [float(overlap(b, a, KEPT)) for a, b in pairwise(one.decoder)],
        **compared("question", one, other),
        **compared("noise", one, shaken),
        "encoder_rank": rank_correlation(one.decoder, one.encoder.expand_as(one.decoder)).tolist(),
        "encoder_overlap": overlap(one.decoder, one.encoder.expand_as(one.decoder), KEPT).tolist(),
        "share": one.decoder.sum(dim=1).tolist(),
        "things": on_things(one.decoder, every),
        "asked": [None] * len(one.decoder) if single is None else hit(one.decoder, single),
    }
    encoder = {
        "things": on_things(one.encoder[None], every)[0],
        "asked": None if single is None else hit(one.encoder[None], single)[0],
        "area": float(every.float().mean()),
        "noise_rank": float(rank_correlation(one.encoder, shaken.encoder)),
        "noise_overlap": float(overlap(one.encoder, shaken.encoder, KEPT)),
        "any_rank": float(np.mean([rank_correlation(a, b) for a, b in pairs(one.decoder)])),
        "any_overlap": float(np.mean([float(overlap(a, b, KEPT)) for a, b in pairs(one.decoder)])),
    }
    return {"layers": layers, "encoder": encoder, "thirds": thirds(one)}


def pairs(maps: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each pair of layers once."""
    return [(maps[a], maps[b]) for a in range(len(maps)) for b in range(a)]


def looked(model: Any, processor: Any, image: Image.Image, question: str) -> Saliency:
    """Return the maps of one question about an image."""
    (found,) = attention_maps(model, question_inputs(processor, image, question))
    return found


def compared(name: str, one: Saliency, other: Saliency) -> dict[str, list[float]]:
    """Compare two maps layer by layer."""
    return {
        f"{name}_rank": rank_correlation(one.decoder, other.decoder).tolist(),
        f"{name}_overlap": overlap(one.decoder, other.decoder, KEPT).tolist(),
    }


def inked(boxes: Sequence[tuple[float, float, float, float]], side: int, canvas: int) -> Tensor:
    """Return which tokens of a square grid some box touches: `(N,)` bool."""
    edge = torch.arange(side) * canvas / side
    touched = torch.zeros(side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        across = (edge < x1) & (edge + canvas / side > x0)
        down = (edge < y1) & (edge + canvas / side > y0)
        touched |= down[:, None] & across[None, :]
    return touched.flatten()


def on_things(maps: Tensor, touched: Tensor) -> list[float]:
    """Return per map the share of its highest places that are on a thing."""
    return touched[maps.topk(KEPT, dim=-1).indices].float().mean(dim=-1).tolist()


def hit(maps: Tensor, touched: Tensor) -> list[float]:
    """Return per map the share of a thing's tokens that are among its highest places."""
    chosen = torch.zeros_like(maps, dtype=torch.bool).scatter_(-1, maps.topk(KEPT, dim=-1).indices, True)
    return (chosen & touched).sum(dim=-1).div(touched.sum().clamp(min=1)).tolist()


def summary(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return per layer the mean over images, and the mean over layers with its interval over images."""
    rows = [each["layers"][name] for each in found if None not in each["layers"][name]]
    return {"layers": np.mean(rows, axis=0).round(4).tolist(), "mean": interval([float(np.mean(row)) for row in rows])}


def interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean over images with its 95 % interval."""
    known = [value for value in values if value is not None]
    return {**value_interval(known, list(range(len(known)))).to_dict(), "images": len(known)}


if __name__ == "__main__":
    raise SystemExit(main())
