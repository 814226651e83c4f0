#!/usr/bin/env python3
"""Measure the most memory that plans hold at once: `python benchmarks/memory.py`.

Counted are the storages that operations of torch make, until they are freed, and what NumPy allocates; features and
signals don't count. SciPy's copy of the distances (`agglomerative`) is beyond both counts, and added where it matters.
On Linux, the growth of the process is written down as well. Every method that acts behind the encoder plans one image,
or one clip if it is for clips. Beside what is measured stands what `Method.memory` says.

With --inside, a prefill of a small LLaVA with random weights is measured, dense and with steps inside the decoder.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import say
from plans import WORDS, picture, visual_tokens
from random_models import Pictures, make, prompt
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import foveate
from foveate.bench.environment import environment
from foveate.errors import FoveateError
from foveate.files import write_json
from foveate.methods import Method, PixelMethod, method_class, method_names
from foveate.methods.arithmetic import products
from foveate.spec import parse
from foveate.tokens import Keep

OPTIONS = {"vispruner": ":step=16384"}
"""What makes a method with many rounds end sooner; it changes no memory."""
INSIDE = ("fastv:0.5@1", "sparsevlm:0.5@1", "dart:0.5@1", "atp:0.5@1", "pyramiddrop:0.5@1", "pool:0.5@1")
"""Specs of prefills with steps inside the decoder."""
KEPT = {"dycoke": 1 / 2, "frames": 1 / 2}
"""The share that is kept by methods that can't keep as little as the others."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--tokens", default=[576, 4096, 16_384, 65_536], **integers, help="visual tokens of an image")
    parser.add_argument("--width", type=int, default=1024, help="of features and keys")
    parser.add_argument("--keep", type=float, default=1 / 64, help="share that is kept")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names; all if left out")
    parser.add_argument("--inside", action="store_true", help="measure prefills with steps inside a decoder")
    parser.add_argument("--side", type=int, default=128, help="visual tokens along a side of the image, for --inside")
    parser.add_argument("--out", type=Path, default=Path("results/memory.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    names = arguments.methods or [name for name in method_names() if plans_tokens(name)]
    with torch.inference_mode():
        # The first measurement imports what later ones need.
        measure("tome", "tome:8", 64, 8)
        for name, tokens in itertools.product([] if arguments.inside else names, arguments.tokens):
            kept = max(1, round(tokens * KEPT.get(name, arguments.keep)))
            rows.append(measure(name, f"{name}:{kept}{OPTIONS.get(name, '')}", tokens, arguments.width))
            say(str(rows[-1]))
        if arguments.inside:
            for row in prefills(arguments.side**2):
                rows.append(row)
                say(str(row))
    result = {
        "what": "the most bytes that a plan of one image holds at once, measured and estimated",
        "width": arguments.width,
        "share": arguments.keep,
        "rows": rows,
        "environment": environment("cpu", time.perf_counter() - began),
    }
    write_json(arguments.out, result)
    return 0


def plans_tokens(name: str) -> bool:
    """Return whether a method acts on the tokens of an image or a clip and takes a keep."""
    method = method_class(name)
    return not issubclass(method, PixelMethod) and method.takes_keep


def measure(name: str, spec: str, tokens: int, width: int) -> dict[str, Any]:
    """Measure one plan; a refusal is written down as its text."""
    method: Method = parse(spec).steps[0].method
    features = picture(1, tokens, width)
    given = visual_tokens(method, features, torch.randn(1, WORDS, width, generator=torch.Generator().manual_seed(1)))
    row = {"method": name, "spec": spec, "tokens": tokens, "estimate": method.memory(tokens, width)}
    began = time.perf_counter()
    # What the first plan imports doesn't count.
    few = visual_tokens(method, features[:, :64], torch.zeros(1, WORDS, width))
    replace(method, keep=Keep(tokens=48)).plan(few)
    signals = [given.signals[need] for need in method.needs]
    before = grown()
    try:
        most = most_bytes(lambda: method.plan(given), features, *signals)
    except FoveateError as error:
        return row | {"refused": str(error)}
    if before is not None:
        row["resident"] = grown(before)
    if name == "agglomerative" and tokens > products.WHOLE and row["estimate"] > 8 * tokens**2:
        most += 4 * tokens * (tokens - 1)
    return row | {"bytes": most, "seconds": round(time.perf_counter() - began, 2)}


def prefills(tokens: int) -> Iterator[dict[str, Any]]:
    """Measure a prefill of one image, dense and with each of the specs that act inside the decoder."""
    pictures = Pictures(1, tokens)
    model = make("tiny", pictures, "cpu", torch.float32, share=False)
    inputs = prompt(model, pictures, 1, WORDS)
    for spec in ("", *INSIDE):
        with nullcontext() if not spec else foveate.apply(model, spec):
            before, began = grown(), time.perf_counter()
            most = most_bytes(lambda: model(**inputs, logits_to_keep=1), *model.parameters(), *inputs.values())
        row = {"spec": spec, "tokens": tokens, "bytes": most, "seconds": round(time.perf_counter() - began, 2)}
        yield row if before is None else row | {"resident": grown(before)}


def grown(before: int | None = None) -> int | None:
    """Return how many bytes more the process held at most than `before`; without it, how many it holds now.

    None where the system doesn't tell. A call without `before` begins to look for the most anew.
    """
    try:
        if before is None:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    held = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * int(held["VmRSS" if before is None else "VmHWM"].split()[0]) - (before or 0)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed; `most` is the largest sum."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._seen = {each.untyped_storage()._cdata for each in given}  # pyright: ignore[reportPrivateUsage]
        self._keep = given
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        # An operation that is made of others is taken apart, so that what these make is counted, too.
        with self:
            out = function.decompose(*arguments, **(named or {}))
        if out is not NotImplemented:
            return out
        out = function(*arguments, **(named or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.look()
        return out

    def look(self) -> None:
        """Add what NumPy held at most since the last look."""
        self.most = max(self.most, self.now + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def most_bytes(plan: Callable[[], object], *given: Tensor) -> int:
    """Return the most bytes that a call holds at once in torch and NumPy, beside tensors that it was given."""
    _warm_up()
    gc.collect()
    tracemalloc.start()
    try:
        with LiveBytes(*given) as live:
            plan()
            live.look()
        return live.most
    finally:
        tracemalloc.stop()


def _warm_up() -> None:
    """Import what the first dispatch imports, so that it isn't counted."""
    with LiveBytes():
        torch.zeros(1).add(1)


if __name__ == "__main__":
    sys.exit(main())
