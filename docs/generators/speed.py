"""docs/speed.md, from docs/measured/plans.json."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from generators.folders import MEASURED

TARGET = 0.01
"""The share of the prefill it saves that a compressor may take, on a CPU."""

HEAD = """\
# What a plan costs

A compressor should be invisible beside what it saves. This page shows, for every method behind the encoder, the time to
make the plans of one image and of eight and to apply them, and what share that is of the saved prefill: the dense
prefill of a decoder of SIZE parameters less its prefill of the kept tokens, each with WORDS tokens of text, in
the same run. The prefill of eight images is taken as eight times that of one.

```text
COMMAND
python docs/make.py speed
```

DEVICE

The target on a CPU is 1 %. Features of width 1024 are what this decoder (width 896) would read; those of width 4096
belong to a decoder about fourteen times as large, and are shown because what methods do with features grows with their
width: beside their own decoder they would weigh less. What it takes to capture attention and keys is not in these
times. `foveate ask` and `foveate bench` print the compressor's whole time, and `foveate cost` estimates it.

"As structured" is the same rule in the structure of its authors' code, one image and one token or cluster after the
other, written by us from the formulas (`benchmarks/as_structured.py`); a test shows that it keeps and merges the same
tokens.
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
        "cpu": "Times are the processor's own, of the whole process on one thread, so other work on the machine hardly "
        f"shows in them (its load was {environment['load']} when the run ended).",
        "wall": f"Times are those of a clock on the wall, with {environment['threads']} threads.",
    }[measured["clock"]]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    machine = environment["processor"] if environment["device"] == "cpu" else environment["device"]
    command = "python benchmarks/plans.py --out docs/measured/plans.json"
    if measured["clock"] == "cpu":
        command += " --clock cpu --threads 1"
    text = HEAD.replace("SIZE", {"0.5B": "0.5 billion", "7B": "7 billion"}[measured["decoder"]])
    text = text.replace("WORDS", str(measured["words"])).replace("COMMAND", command)
    text = text.replace("DEVICE", textwrap.fill(f"Medians, on {machine}; {packages}. {clock}", 120) + again)
    parts = [text, _beyond(rows)]
    for tokens in sorted({row["tokens"] for row in rows}):
        kept = next(row["kept"] for row in rows if row["tokens"] == tokens)
        saved = measured["prefill_ms"][str(tokens)] - measured["prefill_ms"][str(kept)]
        parts.append(
            f"## {tokens} tokens, {kept} kept\n\n"
            f"The prefill takes {measured['prefill_ms'][str(tokens)]:,.0f} ms dense and "
            f"{measured['prefill_ms'][str(kept)]:,.0f} ms with the kept tokens: {saved:,.0f} ms are saved per image.\n"
        )
        for width in sorted({row["width"] for row in rows}):
            parts.append(_table([row for row in rows if (row["tokens"], row["width"]) == (tokens, width)], width))
    return "\n".join(parts)


def _newest(measured: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Rows, those of methods that were measured again later in place of the old; and a sentence that says which."""
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
        f"{', '.join(f'`{name}`' for name in names)} changed and was measured again later, plans alone: add `--methods "
        f"{','.join(names)} --decoder tiny`. The share is of the same prefill as that of the others."
    )
    return rows, "\n" + textwrap.fill(text, 120) + "\n"


def _beyond(rows: list[dict[str, Any]]) -> str:
    """Which methods miss the target at the width that fits the decoder."""
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
            + (f"these take more than 1 %, at worst: {named}." if named else "every method takes less than 1 %.")
        )
    return "\n".join(sentences) + "\n"


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
