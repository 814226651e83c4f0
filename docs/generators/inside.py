"""docs/inside.md, from docs/measured/depth.json."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from generators.folders import MEASURED
from generators.markdown import bullets, machine

TARGET = 1.05
"""How much longer than the ideal a prefill may take."""

HEAD = """\
# Inside the decoder: what a plan at a layer costs

`fastv:0.5@2` leaves half of the visual tokens from decoder layer 2 on. How much of the time that this saves does
foveate's own work take up again?

TOLD
This page compares the prefill under `apply` with the dense prefill and with an *ideal*: embeddings of ids and features,
then the same layers in a loop, each with as many columns as the plan leaves it, without hooks, without making a plan
and without reading the prompt. Each measured prefill is the second of two in a row. Decoding steps are compared with
dense ones. [Accuracy](accuracy.md) shows what these methods cost, and [the design](design.md#inside-the-decoder) how
they work.

"Embedded" is the embedded model, whose prefill takes about as long as one layer of the other. "0.5B" is a decoder of
Qwen2-0.5B's shape with random weights. Each prompt holds one image of 576 tokens and WORDS tokens of text.
"""

TAIL = """\
```text
COMMAND
python docs/make.py inside
```

DEVICE
"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"inside.md": page()}


def page() -> str:
    """Return the text of docs/inside.md."""
    measured: dict[str, Any] = json.loads((MEASURED / "depth.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = measured["rows"]
    environment = measured["environment"]
    versions = environment["packages"]
    command = "python benchmarks/depth.py --out docs/measured/depth.json"
    clock = "Times are wall-clock times."
    if measured["clock"] == "cpu":
        command += f" --clock cpu --threads {environment['threads']}"
        clock = "Times are process times, so other work on the machine hardly affects them."
    device = (
        f"On {machine(environment)}, {environment['threads']} thread(s); "
        f"torch {versions['torch']}, transformers {versions['transformers']}. {clock} "
        f"Milliseconds are medians; ratios are medians of per-round ratios, over {environment['turns']} rounds or more."
    )
    head = HEAD.replace("WORDS", str(measured["text_tokens"])).replace("TOLD\n", _told(rows) + "\n")
    tail = TAIL.replace("COMMAND", command).replace("DEVICE", textwrap.fill(device, 120))
    return "\n".join([head, _table(rows), tail])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| decoder | prompts | spec | tokens over layers | dense, ms | ideal, ms | ours, ms | to ideal | to dense | "
        "decode step to dense | cache to dense |",
        "|:--|--:|:--" + "|--:" * 8 + "|",
    ]
    for row in rows:
        cells = [
            _decoder(row),
            str(row["prompts"]),
            f"`{row['spec']}`",
            f"{row['mean_over_layers']:.0f}",
            *(f"{row[f'{name}_ms']:,.0f}" for name in ("dense", "ideal", "ours")),
            *(f"{row[name]:.2f}" for name in ("ours_to_ideal", "ours_to_dense", "step_to_dense", "cache_to_dense")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _told(rows: Sequence[dict[str, Any]]) -> str:
    """Return the target and which rows miss it, as a list."""
    beyond = [row for row in rows if row["ours_to_ideal"] > TARGET]
    extra = [row["ours_ms"] - row["ideal_ms"] for row in rows if row["decoder"] == "reference" and row["prompts"] == 1]
    points = [f"Target: a prefill within {TARGET - 1:.0%} of the ideal. All {len(rows)} configurations meet it."]
    if beyond:
        missed = ", ".join(
            f"{_decoder(row)} with {row['prompts']} prompt{'s' if row['prompts'] > 1 else ''} under `{row['spec']}` "
            f"({row['ours_to_ideal']:.2f})"
            for row in beyond
        )
        points = [
            f"Target: a prefill within {TARGET - 1:.0%} of the ideal. {len(rows) - len(beyond)} of {len(rows)} "
            f"configurations meet it. These miss it: {missed}."
        ]
    points.append(
        f"On one prompt of the embedded model, foveate adds {min(extra):.0f} to {max(extra):.0f} ms: small operations "
        "that read the prompt, make the plan, cut the columns and return all of them to the caller. Their number does "
        "not grow with the model."
    )
    slow = [row for row in rows if row["step_to_dense"] > 1]
    points.append(
        f"Decoding steps are slower than dense in {len(slow)} of {len(rows)} configurations."
        if slow
        else "No decoding step is slower than dense."
    )
    return bullets(*points)


def _decoder(row: dict[str, Any]) -> str:
    return {"reference": "embedded"}.get(row["decoder"], row["decoder"])
