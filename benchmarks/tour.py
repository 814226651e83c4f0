#!/usr/bin/env python3
"""Make the pictures and answers of the tour in the documentation: `python benchmarks/tour.py`.

Asks the embedded model a question about each of some generated scenes, dense and with fewer tokens, and draws what is
kept. The answers are docs/measured/tour.json and the pictures docs/pictures/tour; `python docs/make.py tour` makes the
page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import torch
from _common import say
from PIL import Image

import foveate
from foveate.asking import ask
from foveate.engine import compress
from foveate.families import family_of
from foveate.files import atomic_file, make_folder, write_json
from foveate.scenes import scene
from foveate.view import Panel, draw_panel
from foveate.visual_prompts import visual_prompt

DOCS: Final = Path(__file__).parents[1] / "docs"
SCENES: Final = (("words", 5, "read_text"), ("shapes", 4, "attribute"), ("tiny", 3, "find_small"))
"""Kind and seed of each scene of the test set, and the skill whose first question is asked."""
METHODS: Final = ("cluster", "cls", "stride")
BUDGETS: Final = (288, 144, 64, 16, 4)
SIDE: Final = 288
"""Pixels along a side of a picture."""


def main() -> int:
    """Make everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder that measured/ and pictures/ are in")
    arguments = parser.parse_args()
    pictures = make_folder(arguments.docs / "pictures" / "tour")
    model, processor = foveate.reference()
    stops = []
    for kind, seed, skill in SCENES:
        one = scene(seed, split="test", kind=kind)
        asked = next(each for each in one.questions if each.skill == skill)
        prompt = visual_prompt(family_of(model), processor, one.image, asked.text)
        name = f"{kind}-{seed}"
        save(one.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), pictures / f"{name}.webp")
        dense = ask(model, processor, prompt.inputs)
        shown: list[dict[str, Any]] = []
        for budget in BUDGETS:
            for method in METHODS:
                spec = f"{method}:{budget}"
                with torch.inference_mode():
                    (kept,) = compress(model, prompt.inputs, spec).images
                panel = Panel(prompt.layouts[0], plan=kept.plan, seen=kept.seen)
                save(draw_panel(one.image, panel, SIDE), pictures / f"{name}-{method}-{budget}.webp")
                answer = ask(model, processor, prompt.inputs, spec)
                shown.append({"method": method, "budget": budget, "spec": spec, "answer": answer.text})
        say(f"{name}: {asked.text}")
        stops.append(
            {
                "name": name,
                "question": asked.text,
                "right": asked.answer,
                "tokens": dense.tokens_before,
                "dense": dense.text,
                "shown": shown,
            }
        )
    write_json(arguments.docs / "measured" / "tour.json", {"side": SIDE, "stops": stops})
    return 0


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as WebP, atomically."""
    with atomic_file(path) as new:
        picture.save(new, "WEBP", quality=80, method=6)


if __name__ == "__main__":
    raise SystemExit(main())
