"""docs/inside.md, from docs/measured/depth.json."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from generators.folders import MEASURED

TARGET = 1.05
"""How much longer than the ideal a prefill may take."""

HEAD = """\
# Inside the decoder: what a plan at a layer costs

`fastv:0.5@2` leaves half of the visual tokens from decoder layer 2 on. This page says what that takes beside what it
saves: the prefill under `apply` beside the dense one and beside the *ideal*, which makes embeddings of ids and features
and then runs the same layers in a loop, each given as many columns as the plan leaves it, with no plan made, no prompt
read and no hook on. Each prefill is the second of two in a row. A step of decoding stands beside the dense one. What
methods inside the decoder cost in accuracy is in [accuracy.md](accuracy.md), and how they work in
[design.md](design.md#inside-the-decoder).

```text
COMMAND
python docs/make.py inside
```

DEVICE

"Reference" is the embedded model; its whole prefill takes about as long as one layer of the other. "0.5B" is a decoder
of Qwen2-0.5B's shape with random weights. Each prompt holds one image of 576 tokens and WORDS tokens of text.
"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"inside.md": page()}


def page() -> str:
    """Return the text of docs/inside.md."""
    measured: dict[str, Any] = json.loads((MEASURED / "depth.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = measured["rows"]
    environment = measured["environment"]
    command = "python benchmarks/depth.py --out docs/measured/depth.json"
    clock = "Times are those of a clock on the wall."
    if measured["clock"] == "cpu":
        command += f" --clock cpu --threads {environment['threads']}"
        clock = "Times are the processor's own, so other work on the machine hardly shows in them."
    device = (
        f"On {environment.get('processor', environment['device'])}, {environment['threads']} thread(s); "
        f"torch {environment['torch']}, transformers {environment['transformers']}. {clock} "
        f"Milliseconds are medians; ratios are medians of each turn's own, of {environment['turns']} turns or more."
    )
    text = HEAD.replace("COMMAND", command).replace("WORDS", str(measured["text_tokens"]))
    return "\n".join([text.replace("DEVICE", textwrap.fill(device, 120)), _table(rows), _told(rows)])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| decoder | prompts | spec | tokens over layers | dense, ms | ideal, ms | ours, ms | to ideal | to dense | "
        "decode step to dense | cache to dense |",
        "|:--|--:|:--" + "|--:" * 8 + "|",
    ]
    for row in rows:
        cells = [
            row["decoder"],
            str(row["prompts"]),
            f"`{row['spec']}`",
            f"{row['mean_over_layers']:.0f}",
            *(f"{row[f'{name}_ms']:,.0f}" for name in ("dense", "ideal", "ours")),
            *(f"{row[name]:.2f}" for name in ("ours_to_ideal", "ours_to_dense", "step_to_dense", "cache_to_dense")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _told(rows: Sequence[dict[str, Any]]) -> str:
    """What the target is, and who misses it."""
    beyond = [row for row in rows if row["ours_to_ideal"] > TARGET]
    extra = [row["ours_ms"] - row["ideal_ms"] for row in rows if row["decoder"] == "reference" and row["prompts"] == 1]
    text = f"The target is a prefill within {TARGET - 1:.0%} of the ideal. "
    if beyond:
        text += f"{len(rows) - len(beyond)} of {len(rows)} meet it; these don't: " + ", ".join(
            f"{row['decoder']} with {row['prompts']} prompt{'s' if row['prompts'] > 1 else ''} under `{row['spec']}` "
            f"({row['ours_to_ideal']:.2f})"
            for row in beyond
        )
        text += ". "
    else:
        text += "All meet it. "
    text += (
        f"On one prompt of the reference model {min(extra):.0f} to {max(extra):.0f} ms are added: small operations "
        "that read the prompt, make the plan, cut the columns and give the caller all of them back. Their "
        "number doesn't grow with the model. "
    )
    slow = [row for row in rows if row["step_to_dense"] > 1]
    text += (
        f"A step of decoding is slower than dense in {len(slow)} of {len(rows)}."
        if slow
        else "No step of decoding is slower than dense."
    )
    return textwrap.fill(text, 120) + "\n"
