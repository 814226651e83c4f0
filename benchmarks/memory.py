#!/usr/bin/env python3
"""Measure the most memory that plans hold at once: `python benchmarks/memory.py`.

Counted are the storages that operations of torch make, until they are freed, and what NumPy allocates; features and
signals don't count. SciPy's copy of the distances (`agglomerative`) is beyond both counts, and added where it matters.
Every method that acts behind the encoder plans one image. Beside what is measured stands what `Method.memory` says.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import say
from plans import WORDS, can_be_planned, visual_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.bench.environment import environment
from foveate.errors import FoveateError
from foveate.files import write_json
from foveate.methods import Method, method_names
from foveate.methods.arithmetic import products
from foveate.spec import parse

OPTIONS = {"vispruner": ":step=512"}
"""What makes a method with many rounds end sooner; it changes no memory."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = {"type": lambda text: [int(each) for each in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--tokens", default=[4096, 16_384, 65_536], **integers, help="visual tokens of an image")
    parser.add_argument("--width", type=int, default=64, help="of features and keys")
    parser.add_argument("--keep", type=int, default=64, help="tokens that are kept")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="names; all if left out")
    parser.add_argument("--out", type=Path, default=Path("results/memory.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    names = arguments.methods or [name for name in method_names() if can_be_planned(name)]
    with torch.inference_mode():
        for name in names:
            for tokens in arguments.tokens:
                spec = f"{name}:{arguments.keep}{OPTIONS.get(name, '')}"
                rows.append(measure(name, spec, tokens, arguments.width))
                say(f"{spec:28} {tokens:7} {rows[-1]}")
    result = {
        "what": "the most bytes that a plan of one image holds at once, measured and estimated",
        "width": arguments.width,
        "kept": arguments.keep,
        "rows": rows,
        "environment": environment("cpu", time.perf_counter() - began),
    }
    write_json(arguments.out, result)
    return 0


def measure(name: str, spec: str, tokens: int, width: int) -> dict[str, Any]:
    """Measure one plan; a refusal is written down as its text."""
    method: Method = parse(spec).steps[0].method
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, tokens, width, generator=generator)
    given = visual_tokens(method, features, torch.randn(1, WORDS, width, generator=generator))
    row = {"method": name, "spec": spec, "tokens": tokens, "estimate": method.memory(tokens, width)}
    try:
        most = most_bytes(lambda: method.plan(given), features, *(given.signals[need] for need in method.needs))
    except FoveateError as error:
        return row | {"refused": str(error)}
    if name == "agglomerative" and tokens > products.WHOLE:
        most += 4 * tokens * (tokens - 1)
    return row | {"bytes": most}


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed; `most` is the largest sum."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._seen = {each.untyped_storage()._cdata for each in given}  # pyright: ignore[reportPrivateUsage]
        self._keep = given
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        out = function(*arguments, **(named or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.most = max(self.most, self.now)
        return out

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
        return live.most + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _warm_up() -> None:
    """Import what the first dispatch imports, so that it isn't counted."""
    with LiveBytes():
        torch.zeros(1).add(1)


if __name__ == "__main__":
    sys.exit(main())
