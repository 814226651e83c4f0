"""docs/tour.md, from docs/measured/tour.json: what is kept of some pictures, budget by budget, behind a slider."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from generators.folders import MEASURED

HEAD: Final = """\
# A tour: fewer and fewer tokens

The embedded model sees each picture as 24 x 24 = 576 tokens. Move the slider to give it fewer, and see what three
methods keep and what the model answers then. `cluster` merges tokens that are alike into one: a colour is a group, and
its token is outlined. `cls` keeps the tokens that the encoder attends to most, and `stride` an even grid; what they
drop is dark.

These are three pictures, chosen for what they show. [Accuracy](accuracy.md) has the figures of hundreds, and
[`foveate play`](play.md) does the same with your own pictures.
"""

AGAIN: Final = """\
Pictures and answers are made beforehand: `python benchmarks/tour.py`, then `python docs/make.py tour`.
"""


def pages() -> dict[str, str]:
    """Return the page."""
    found = json.loads((MEASURED / "tour.json").read_text(encoding="utf-8"))
    return {"tour.md": "\n".join([HEAD, *(stop(each, found["side"]) for each in found["stops"]), AGAIN])}


def stop(found: Mapping[str, Any], side: int) -> str:
    """Return one picture with its budgets, as HTML: without scripts, all of them stand below each other."""
    budgets = sorted({each["budget"] for each in found["shown"]}, reverse=True)
    name, question = found["name"], html.escape(found["question"])
    parts = [part([each for each in found["shown"] if each["budget"] == budget], found, side) for budget in budgets]
    dense = figure(f"pictures/tour/{name}.webp", "the picture", "dense", found["tokens"], found["dense"], found, side)
    return "\n".join([f"## {question[:1].upper()}{question[1:]}\n", '<div class="tour">', dense, *parts, "</div>\n"])


def part(shown: Sequence[Mapping[str, Any]], found: Mapping[str, Any], side: int) -> str:
    """Return what is kept with one budget."""
    budget = shown[0]["budget"]
    figures = [
        figure(
            f"pictures/tour/{found['name']}-{each['method']}-{budget}.webp",
            f"the {budget} tokens that {each['spec']} keeps",
            each["spec"],
            budget,
            each["answer"],
            found,
            side,
        )
        for each in shown
    ]
    return (
        f'<div class="tour-part" data-tokens="{budget}" data-of="{found["tokens"]}">\n'
        + "\n".join(figures)
        + "\n</div>"
    )


def figure(file: str, alt: str, spec: str, tokens: int, answer: str, found: Mapping[str, Any], side: int) -> str:
    """Return one picture with the answer that its tokens lead to."""
    right = answer.strip() == found["right"]
    style, mark = ("right", "right") if right else ("wrong", f"wrong: {html.escape(found['right'])}")
    return (
        f'<figure><img src="{file}" alt="{html.escape(alt)}" width="{side}" height="{side}" loading="lazy">'
        f"<figcaption><code>{html.escape(spec)}</code>, {tokens} tokens<br>"
        f'"{html.escape(answer.strip())}" <span class="tour-{style}">({mark})</span></figcaption></figure>'
    )
