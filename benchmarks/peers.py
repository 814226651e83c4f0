#!/usr/bin/env python3
"""Time plans beside what a user would take instead: `python benchmarks/peers.py`.

A peer is a library (SciPy's linkage, scikit-learn's and faiss's k-means), or the rule in the structure of its authors'
code (as_structured.py). Both get the same features and signals and give the kept tokens' features. They take turns in
one run, on one thread; the ratio is that of their medians. Rows of libraries that aren't installed are left out. Of
each row, the share of kept tokens that both give alike is written down, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import as_structured
import torch
from _common import CLOCKS, Clock, say
from plans import WORDS, picture, visual_tokens
from torch import Tensor

from foveate.bench.environment import environment
from foveate.files import write_json
from foveate.methods import DART, ATPMethod, FastV, Method, SparseVLM
from foveate.spec import parse
from foveate.tokens import EncoderAttention, EncoderKeys, Text, VisualTokens

Peer = Callable[[VisualTokens, int], Tensor]
"""A function of tokens and how many are kept; it returns `(B, kept, D)` in any order."""
SHARES: dict[str, float] = {"dycoke": 1 / 2, "evs": 1 / 2}
"""The share that is kept by methods that can't keep as little as the others."""
CLOSE = 1e-3
"""How far a kept token's features may be from the peer's, relative to their size."""


def main() -> int:
    arguments = read()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for tokens in arguments.tokens:
            for images in arguments.images:
                for name, library, peer in peers(arguments.methods, arguments.device == "cpu"):
                    rows.append(measure(name, library, peer, tokens, images, arguments))
                    say(line(rows[-1]))
    libraries = sorted({row["library"] for row in rows if row["library"] in LIBRARIES})
    result = {
        "what": "milliseconds of a plan and its application, and of a peer; same: kept tokens that both give alike",
        "width": arguments.width,
        "clock": arguments.clock,
        "rows": rows,
        "versions": {name: version(LIBRARIES[name]) for name in libraries},
        "environment": environment(arguments.device, time.perf_counter() - began),
    }
    write_json(arguments.out, result)
    slower = [row for row in rows if row["ratio"] < 1]
    say(f"\n{len(rows)} rows, {len(slower)} below 1.0: {arguments.out}")
    return 1 if slower else 0


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--tokens", default=[576, 2880], **integers, help="visual tokens of an image")
    parser.add_argument("--images", default=[1, 8], **integers, help="planned as one batch")
    parser.add_argument("--width", type=int, default=1024, help="of the features")
    parser.add_argument("--keep", type=float, default=1 / 9, help="share that is kept")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names; all if left out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; libraries are left out there")
    parser.add_argument("--clock", choices=CLOCKS, help="cpu counts the processor's time; that if it is left out")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a row, about; at least three turns are taken")
    parser.add_argument("--out", type=Path, default=Path("results/peers.json"))
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.clock = arguments.clock or ("cpu" if on_cpu else "wall")
    if not on_cpu and arguments.clock == "cpu":
        parser.error("--clock cpu counts the processor's time, which isn't a GPU's")
    unknown = sorted(set(arguments.methods or []) - {name for name, _, _ in PEERS})
    if unknown:
        parser.error(f"no method with a peer is called {', '.join(unknown)}")
    return arguments


def peers(methods: list[str] | None, libraries: bool) -> list[tuple[str, str, Peer]]:
    """Return the peers of some methods that can be run here, with or without libraries among them."""
    return [
        (name, library, peer)
        for name, library, peer in PEERS
        if (methods is None or name in methods)
        and (library not in LIBRARIES or libraries)
        and (library not in LIBRARIES or importlib.util.find_spec(MODULES[library]) is not None)
    ]


def measure(
    name: str, library: str, peer: Peer, tokens: int, images: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure a method and its peer in turns."""
    kept = max(1, round(tokens * SHARES.get(name, arguments.keep)))
    method: Method = parse(f"{name}:{kept}").steps[0].method
    features = picture(images, tokens, arguments.width).to(arguments.device)
    text = torch.randn(images, WORDS, arguments.width, generator=torch.Generator().manual_seed(1)).to(arguments.device)
    given = visual_tokens(method, features, text)

    def ours() -> Tensor:
        return method.plan(given).apply(features)

    def theirs() -> Tensor:
        # What a rule makes itself lies where its features do.
        with nullcontext() if arguments.device == "cpu" else torch.device(arguments.device):
            return peer(given, kept)

    same = alike(ours(), theirs())
    clock = Clock(arguments.device, arguments.clock)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + arguments.seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 51):
        for run, record in zip((ours, theirs), times, strict=True):
            record.append(clock(run))
    mine, other = (statistics.median(each) for each in times)
    return {
        "method": name,
        "library": library,
        "tokens": tokens,
        "images": images,
        "kept": kept,
        "ms": float(f"{mine:.4g}"),
        "peer_ms": float(f"{other:.4g}"),
        "ratio": round(other / mine, 3),
        "turns": len(times[0]),
        "same": round(same, 4),
    }


def alike(ours: Tensor, theirs: Tensor) -> float:
    """Return the share of our kept tokens that are among the peer's."""
    away = torch.cdist(ours.float(), theirs.float()).amin(dim=2)
    return float((away <= CLOSE * ours.float().norm(dim=2).clamp(min=1e-6)).float().mean())


def line(row: dict[str, Any]) -> str:
    shape = f"{row['images']} x {row['tokens']} -> {row['kept']}"
    beside = f"{row['ms']:9.1f} ms, {row['library']} {row['peer_ms']:9.1f} ms"
    return f"{row['method']:14} {shape:20} {beside:44} {row['ratio']:7.2f}   {row['same']:.1%} alike"


# Peers


def one_by_one(rule: Callable[..., Tensor], *signals: Any, picking: bool = False) -> Peer:
    """Make a peer of a rule for one image: a function of features, signals and the number of kept tokens.

    Args:
        rule: it returns features, or picks if `picking`.
        *signals: that it takes.
        picking: whether it returns the numbers of the kept tokens.
    """

    def peer(given: VisualTokens, kept: int) -> Tensor:
        out: list[Tensor] = []
        for number, x in enumerate(given.features):
            result = rule(x, *(given.signals[each][number] for each in signals), kept)
            out.append(x[result] if picking else result)
        return torch.stack(out)

    return peer


def means(x: Tensor, group: Tensor, kept: int) -> Tensor:
    """Return the mean of each group."""
    sums = torch.zeros(kept, x.shape[1]).index_add_(0, group, x)
    return sums / group.bincount(minlength=kept)[:, None]


def scipy_ward(x: Tensor, kept: int) -> Tensor:
    """SciPy's linkage over distances of one matrix product, which is faster than over features."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    away = torch.cdist(x, x).fill_diagonal_(0)
    tree = linkage(squareform(away.numpy(), checks=False), "ward")
    return means(x, torch.from_numpy(fcluster(tree, kept, "maxclust")).long() - 1, kept)


def starts(x: Tensor, kept: int) -> Tensor:
    """Return evenly spaced tokens, where k-means begins."""
    return x[(torch.arange(kept) * 2 + 1) * len(x) // (2 * kept)]


def sklearn_kmeans(x: Tensor, kept: int) -> Tensor:
    from sklearn.cluster import KMeans

    fitted = KMeans(kept, init=starts(x, kept).numpy(), n_init=1, max_iter=10, tol=0, algorithm="lloyd").fit(x.numpy())
    return means(x, torch.from_numpy(fitted.labels_).long(), kept)


def faiss_kmeans(x: Tensor, kept: int) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(1)
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    fitted = faiss.Kmeans(x.shape[1], kept, niter=10, **limits)
    fitted.train(x.numpy(), init_centroids=starts(x, kept).numpy())
    return means(x, torch.from_numpy(fitted.index.search(x.numpy(), 1)[1][:, 0]), kept)


def of_frames(rule: Callable[[Tensor, int], Tensor]) -> Peer:
    """Make a peer of a rule that picks from the frames of one clip, `(T, P, D)`."""

    def peer(given: VisualTokens, kept: int) -> Tensor:
        (clip,) = given.layout.segments
        return torch.stack([x[rule(x.view(clip.t, clip.h * clip.w, -1), kept)] for x in given.features])

    return peer


def sparsevlm(given: VisualTokens, kept: int) -> Tensor:
    method = parse(f"sparsevlm:{kept}").steps[0].method
    assert isinstance(method, SparseVLM)
    return one_by_one(partial(as_structured.sparsevlm, split=method.split), *method.needs)(given, kept)


def atp(given: VisualTokens, kept: int) -> Tensor:
    (grid,) = given.layout.segments
    rule = partial(as_structured.atp, sides=(grid.h, grid.w))
    return one_by_one(rule, *ATPMethod(keep=kept).needs, picking=True)(given, kept)


ATTENTION, KEYS = EncoderAttention(layer=-2), EncoderKeys(layer=-2)
STRUCTURED = "as structured"
LIBRARIES = {"SciPy": "scipy", "scikit-learn": "scikit-learn", "faiss": "faiss-cpu"}
"""Distributions by the name of a library."""
MODULES = {"SciPy": "scipy", "scikit-learn": "sklearn", "faiss": "faiss"}
PEERS: list[tuple[str, str, Peer]] = [
    ("agglomerative", "SciPy", one_by_one(scipy_ward)),
    ("atp", STRUCTURED, atp),
    ("cdpruner", STRUCTURED, one_by_one(as_structured.cdpruner, Text(), picking=True)),
    ("cls", STRUCTURED, lambda given, kept: as_structured.cls(given.features, given.signals[ATTENTION], kept)),
    ("cluster", "faiss", one_by_one(faiss_kmeans)),
    ("cluster", "scikit-learn", one_by_one(sklearn_kmeans)),
    ("cluster", STRUCTURED, one_by_one(as_structured.cluster)),
    ("dart", STRUCTURED, one_by_one(as_structured.dart, *DART(keep=1).needs, picking=True)),
    ("divprune", STRUCTURED, one_by_one(as_structured.divprune, picking=True)),
    ("dpc-knn", STRUCTURED, one_by_one(lambda x, kept: as_structured.dpc_knn(x, kept)[1])),
    ("dycoke", STRUCTURED, of_frames(as_structured.dycoke)),
    ("evs", STRUCTURED, of_frames(as_structured.evs)),
    ("fastv", STRUCTURED, one_by_one(as_structured.most_attended, *FastV(keep=1).needs, picking=True)),
    ("hired", STRUCTURED, one_by_one(as_structured.most_attended, ATTENTION, picking=True)),
    ("holov", STRUCTURED, one_by_one(as_structured.holov, ATTENTION, picking=True)),
    ("pool", STRUCTURED, one_by_one(as_structured.pool)),
    (
        "prumerge",
        STRUCTURED,
        one_by_one(
            as_structured.prumerge, EncoderAttention(layer=-1, heads="full"), EncoderKeys(layer=-1, heads="full")
        ),
    ),
    ("sparsevlm", STRUCTURED, sparsevlm),
    ("tome", STRUCTURED, lambda given, kept: as_structured.tome(given.features, kept)),
    ("visionzip", STRUCTURED, one_by_one(as_structured.visionzip, ATTENTION, KEYS)),
    ("vispruner", STRUCTURED, one_by_one(as_structured.vispruner, ATTENTION, picking=True)),
]
"""Methods, the names of their peers, and the peers."""


if __name__ == "__main__":
    sys.exit(main())
