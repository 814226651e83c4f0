"""docs/speed.md, from docs/measured/plans.json, peers.json, memory.json and memory-inside.json."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from foveate.costmodel import cost
from foveate.errors import FoveateError
from foveate.methods import PixelMethod, method_class, method_names
from foveate.spec import parse
from generators.folders import MEASURED
from generators.markdown import fill, machine, packages, table

TARGET = 0.01
"""The share of the prefill it saves that a compressor may take, on a CPU."""

HEAD = """\
# The time of a plan

Compression should take far less time than it saves. The target on a CPU is 1 % of the saved prefill time:

BEYOND
For every method after the encoder, this page shows the time to make and apply the plans of one image and of eight, and
its share of the saved prefill. That is the dense prefill of a decoder of SIZE parameters minus its prefill with the
kept tokens, each with WORDS tokens of text, in the same run; eight images count as eight times one.

Features of width 1024 are what this decoder (width 896) would read. Features of width 4096 belong to a decoder about
fourteen times as large, whose prefill would make their shares smaller; they show how the time grows with the width.
Times exclude the capture of attention and keys. `foveate ask` and `foveate bench` print the compressor's whole time,
and `foveate cost` estimates it.

"As structured" is the same method with the loops of its authors' code: image by image, and token by token or cluster by
cluster. We wrote it from the formulas (`benchmarks/as_structured.py`), and a test shows that it keeps and merges the
same tokens.

```text
COMMAND
python docs/make.py speed
```

DEVICE
"""

PEERS = """\
## Beside what else does the same

How many times as long the peer takes, plan and application together: SciPy's Ward linkage, k-means of scikit-learn and
faiss, and otherwise the rule as its authors structured it. Both get the same features of width WIDTH, on one thread, in
turns of one run; NUMBER of COUNT rows are below 1.

```text
python benchmarks/peers.py --seconds 4 --out docs/measured/peers.json
```

Medians of process times on MACHINE; PACKAGES.

"""

MEMORY = """\
## Memory

The most megabytes that a plan of one image holds at once, beside its features and signals: float32 features of width
WIDTH on a CPU, with SHARE of the tokens kept (OTHERS). The features alone take LARGEST. Methods for clips plan a
clip of as many tokens. Numbers in brackets are not measured: they are what `Method.memory` estimates, as `foveate cost`
does, and a test holds these estimates within 20 %. A plan that would hold more than 2 GB is refused before it starts,
with this number: `cdpruner` and `prumerge` with half of 65,536 tokens kept, for instance.

```text
python benchmarks/memory.py --out docs/measured/memory.json
python benchmarks/memory.py --inside --out docs/measured/memory-inside.json
```

Counted are what operations of torch make until it is freed, and what NumPy allocates, with PACKAGES.

"""

INSIDE = """
Inside the decoder, no step makes a map of all pairs of tokens, which would take PAIRS MB for each head with TOKENS
visual tokens. The most megabytes that a whole prefill holds, beside weights and inputs, in a LLaVA with random weights
(decoder of width 64 and 3 layers, attention by SDPA), with half of the tokens kept:

"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"speed.md": page()}


def page() -> str:
    """Return the text of docs/speed.md."""
    measured: dict[str, Any] = json.loads((MEASURED / "plans.json").read_text(encoding="utf-8"))
    rows, again = _newest(measured)
    environment = measured["environment"]
    clock = {
        "cpu": "Times are process times of one thread, so other work on the machine hardly affects them (its load was "
        f"{environment['load']} when the run ended).",
        "wall": f"Times are wall-clock times, with {environment['threads']} threads.",
    }[measured["clock"]]
    command = "python benchmarks/plans.py --out docs/measured/plans.json"
    if measured["clock"] == "cpu":
        command += " --clock cpu --threads 1"
    text = HEAD.replace("SIZE", {"0.5B": "0.5 billion", "7B": "7 billion"}[measured["decoder"]])
    text = text.replace("WORDS", str(measured["words"])).replace("COMMAND", command)
    where = f"Medians, on {machine(environment)}; {packages(environment)}. {clock}"
    text = text.replace("DEVICE", textwrap.fill(where, 120) + again)
    clips, rows = [row for row in rows if "frames" in row], [row for row in rows if "frames" not in row]
    parts = [text.replace("BEYOND\n", _beyond(rows) + "\n")]
    for tokens in sorted({row["tokens"] for row in rows}):
        kept = next(row["kept"] for row in rows if row["tokens"] == tokens)
        saved = measured["prefill_ms"][str(tokens)] - measured["prefill_ms"][str(kept)]
        parts.append(
            f"## {tokens} tokens, {kept} kept\n\n"
            f"The prefill takes {measured['prefill_ms'][str(tokens)]:,.0f} ms dense and "
            f"{measured['prefill_ms'][str(kept)]:,.0f} ms with the kept tokens: each image saves {saved:,.0f} ms.\n"
        )
        for width in sorted({row["width"] for row in rows}):
            parts.append(_table([row for row in rows if (row["tokens"], row["width"]) == (tokens, width)], width))
    for tokens in sorted({row["tokens"] for row in clips}):
        parts.append(_clip([row for row in clips if row["tokens"] == tokens], measured["prefill_ms"]))
    return "\n".join([*parts, _beside_peers(), _memory(), _launches()])


def _clip(rows: list[dict[str, Any]], prefill: dict[str, float]) -> str:
    """Return the section on plans of one clip."""
    tokens, kept, frames, width = (rows[0][name] for name in ("tokens", "kept", "frames", "width"))
    dense, short = (prefill[str(count)] for count in (tokens, kept))
    return (
        f"## A clip of {frames} frames, {tokens:,} tokens, {kept:,} kept\n\n"
        f"The prefill takes {dense:,.0f} ms dense and {short:,.0f} ms with the kept tokens: the clip saves "
        f"{dense - short:,.0f} ms.\n\n" + _table(rows, width)
    )


def _newest(measured: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows, with later measurements in place of earlier ones, and a sentence that says which these are."""
    later: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(MEASURED.glob("plans-*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            later[row["method"], row["tokens"], row["kept"], row["width"], row["images"]] = row
    rows = []
    for row in measured["rows"]:
        new = later.get((row["method"], row["tokens"], row["kept"], row["width"], row["images"]))
        if new is not None:
            saved = measured["prefill_ms"][str(row["tokens"])] - measured["prefill_ms"][str(row["kept"])]
            row = row | {"ms": new["ms"], "share": new["ms"] / row["images"] / saved}
        rows.append(row)
    if not later:
        return rows, ""
    names = sorted({method for method, *_ in later})
    text = (
        f"{', '.join(f'`{name}`' for name in names)} changed later and was measured again, plans only: add `--methods "
        f"{','.join(names)} --decoder tiny`. Its share is of the same prefill as that of the others."
    )
    return rows, "\n" + textwrap.fill(text, 120) + "\n"


def _beyond(rows: list[dict[str, Any]]) -> str:
    """Return which methods miss the target at the width that fits the decoder, as a list."""
    width = min(row["width"] for row in rows)
    sentences = []
    for tokens in sorted({row["tokens"] for row in rows}):
        worst: dict[str, float] = {}
        for row in rows:
            if row["tokens"] == tokens and row["width"] == width and row["share"] > TARGET:
                worst[row["method"]] = max(worst.get(row["method"], 0.0), row["share"])
        named = ", ".join(f"`{name}` ({share:.1%})" for name, share in sorted(worst.items(), key=lambda each: -each[1]))
        sentences.append(
            f"* With {tokens} tokens of width {width}, "
            + (f"these take more than 1 % (worst case): {named}." if named else "every method takes less than 1 %.")
        )
    return "\n".join(sentences) + "\n"


def _beside_peers() -> str:
    """Return the section on plans beside their peers."""
    measured: dict[str, Any] = json.loads((MEASURED / "peers.json").read_text(encoding="utf-8"))
    rows, environment = measured["rows"], measured["environment"]
    slower = sum(row["ratio"] < 1 for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    text = PEERS.replace("WIDTH", str(measured["width"])).replace("COUNT", str(len(rows)))
    text = text.replace("NUMBER", str(slower) if slower else "none")
    text = text.replace("MACHINE", machine(environment)).replace("PACKAGES", f"{packages(environment)}, {versions}")
    sizes = sorted({(row["tokens"], row["images"]) for row in rows})
    titles = [f"{tokens} tokens, {images} image{'s' if images > 1 else ''}" for tokens, images in sizes]
    cells = {(row["method"], row["library"], row["tokens"], row["images"]): f"{row['ratio']:.2f}" for row in rows}
    pairs = sorted({(row["method"], row["library"]) for row in rows})
    lines = [[f"`{name}`", library, *(cells[name, library, *size] for size in sizes)] for name, library in pairs]
    return text + table(["method", "beside", *titles], lines) + _alike(rows)


LAUNCHES = """\
## What is launched

On a GPU at batch 1, starting operations takes the time. This table has what each method adds to a prefill of
LLaVA-1.5-7B with 64 of 576 tokens kept (clips: half of 64 frames of 14 x 14 tokens, for Qwen2.5-VL-7B), at the place
where it acts by default (in the decoder: before layer 2): the plan and its application, its signals, and what the
engine does itself. A wait is a copy to the host, after which the next operation can't be started ahead of time. Where
the content decides how many rounds there are, the number is an estimate.

The numbers are those of `foveate.cost(...).part("compressor")`. Tests count the operations of every method and of the
engine with a device that only pretends to be one. The predicted time is a lower bound: the longer of the operations'
own time and of their start, 5 us each, with a wait counted as two. It is printed beside the predicted dense prefill,
which takes PREFILL ms (clips: CLIP ms).

"""


def _launches() -> str:
    """Return the section on launches and waits."""
    lines: list[list[str]] = []
    clip = {"images": [], "clips": [(128, 392, 392)]}
    dense: dict[bool, float] = {}
    for name in method_names():
        method = method_class(name)
        if issubclass(method, PixelMethod):
            continue
        model, call = ("qwen2.5-vl-7b", clip) if method.temporal else ("llava-1.5-7b", {})
        dense[method.temporal] = cost(model, device="h100", new_tokens=1, **call).part("prefill").seconds
        keep = (":0.5" if method.temporal else ":64") if method.takes_keep else ""
        places = "@2" if method.place == "decoder" else ""
        try:
            found = cost(model, f"{name}{keep}{places}", device="h100", new_tokens=1, **call).part("compressor")
        except FoveateError:
            continue
        time, share = found.seconds * 1e3, found.seconds / dense[method.temporal]
        lines.append([f"`{name}`", f"{found.launches:,}", str(found.waits), f"{time:.2f}", f"{share:.1%}"])
    text = LAUNCHES.replace("PREFILL", f"{dense[False] * 1e3:.1f}").replace("CLIP", f"{dense[True] * 1e3:.1f}")
    return text + table(["method", "operations", "waits", "H100, ms (predicted)", "of the dense prefill"], lines)


def _alike(rows: list[dict[str, Any]]) -> str:
    """Return a sentence on rows whose results aren't all alike."""
    other = [row for row in rows if row["same"] < 1]
    if not other:
        return "\nBoth give the same tokens in every row.\n"
    shares = ", ".join(
        f"`{row['method']}` {row['same']:.1%} ({row['tokens']} tokens, images at once: {row['images']})"
        for row in other
    )
    text = (
        f"Both give the same tokens in the other rows, and in these that share of them: {shares}. There scores are so "
        "near each other that rounding decides."
    )
    return "\n" + textwrap.fill(text, 120) + "\n"


def _memory() -> str:
    """Return the section on the memory of plans."""
    measured: dict[str, Any] = json.loads((MEASURED / "memory.json").read_text(encoding="utf-8"))
    rows, width = measured["rows"], measured["width"]
    sizes = sorted({row["tokens"] for row in rows})
    halves = {row["method"] for row in rows if 2 * int(row["spec"].split(":")[1]) == row["tokens"]}
    others = ", ".join(f"`{name}`: half" for name in sorted(halves))
    text = MEMORY.replace("WIDTH", str(width)).replace("SHARE", f"one in {round(1 / measured['share'])}")
    text = text.replace("OTHERS", others).replace("PACKAGES", packages(measured["environment"]))
    text = text.replace("LARGEST", f"{4 * sizes[-1] * width / 1e6:.0f} MB with {sizes[-1]:,} tokens")
    text = "\n\n".join(part if part.startswith(("#", "```")) else fill(part) for part in text.split("\n\n"))
    cells = {(row["method"], row["tokens"]): _megabytes(row, width) for row in rows}
    names = sorted({row["method"] for row in rows})
    lines = [[f"`{name}`", *(cells.get((name, size), "") for size in sizes)] for name in names]
    inside: dict[str, Any] = json.loads((MEASURED / "memory-inside.json").read_text(encoding="utf-8"))
    tokens = inside["rows"][0]["tokens"]
    head = INSIDE.replace("PAIRS", f"{4 * tokens**2 / 1e6:,.0f}").replace("TOKENS", f"{tokens:,}")
    within = [[f"`{row['spec']}`" if row["spec"] else "none", f"{row['bytes'] / 1e6:.0f}"] for row in inside["rows"]]
    return (
        "\n" + text + table(["method", *(f"{size:,} tokens" for size in sizes)], lines, "l" + "r" * len(sizes))
        + head + table(["step", "MB"], within, "lr")
    )  # fmt: skip


def _megabytes(row: dict[str, Any], width: int) -> str:
    """Return the megabytes of a plan; in brackets the estimate, if they weren't measured."""
    if "bytes" in row:
        return f"{row['bytes'] / 1e6:.1f}"
    if "refused" in row:
        return "refused"
    return f"({parse(row['spec']).steps[0].method.memory(row['tokens'], width) / 1e6:.1f})"


def _table(rows: list[dict[str, Any]], width: int) -> str:
    images = sorted({row["images"] for row in rows})
    head = [f"features of width {width}"]
    for count in images:
        head += [f"{count} image{'s' if count > 1 else ''}, ms", "share"]
    lines = [f"| {' | '.join([*head, 'as structured, ms'])} |", "|---" + "|---:" * (len(head)) + "|"]
    for name in sorted({row["method"] for row in rows}):
        mine = {row["images"]: row for row in rows if row["method"] == name}
        cells = [f"`{name}`"]
        for count in images:
            cells += [_number(mine[count]["ms"]), f"{mine[count]['share']:.2%}"]
        structured = mine[images[0]].get("structured_ms")
        lines.append(f"| {' | '.join([*cells, _number(structured) if structured else ''])} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
