#!/usr/bin/env python3
"""Make the pictures of `foveate play`: python docs/screenshots.py

Needs the extra `play`, playwright (never its own browsers) and a Chromium: the package chromium of Debian, or the one
that FOVEATE_CHROMIUM names. `nox -s play -- --screenshots` brings all but the browser.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = Path(__file__).resolve().parent / "pictures"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
"""A browser that asks nobody for anything by itself."""
STATE = "picture=words-5&q=what+is+the+orange+word+%3F&spec=cluster:64&spec=cls:64&spec=stride:64"
SHOTS = (("ask", ".fv-card", "light", 1000), ("see", ".fv-figures", "dark", 1080), ("cost", ".fv-cost", "light", 1060))
"""Per picture its tab, what to wait for, light or dark, and its height in pixels."""
LARGEST = 200_000
"""Bytes of a picture."""


def chromium() -> str | None:
    """Return where Chromium is; None if there is none."""
    return os.environ.get("FOVEATE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Any]:
    """Start a headless Chromium with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield started
        finally:
            started.close()


@contextmanager
def served(results: Mapping[str, Path] | None = None) -> Iterator[str]:
    """Serve the page with the embedded model from this process, and yield its address."""
    import foveate
    from foveate.embedded.clips import clip_reference
    from foveate.play import page
    from foveate.play.player import Player, Players
    from foveate.play.workbench import Workbench

    players = Players(
        Player(*foveate.reference(), "the embedded model"),
        lambda: Player(*clip_reference(), "the embedded model for clips"),
    )
    served = page.served(Workbench(players, None, results), wait=False)
    try:
        yield served.local_url
    finally:
        served.close()


def shoot(to: Path = PICTURES) -> None:
    """Take the three pictures that README and docs show."""
    with served() as address, browser() as chrome:
        for tab, waited, scheme, height in SHOTS:
            context = chrome.new_context(viewport={"width": 1240, "height": height}, color_scheme=scheme)
            shown = context.new_page()
            shown.goto(f"{address}?{STATE}&tab={tab}")
            shown.wait_for_selector(waited)
            shown.wait_for_selector("#fv-controls2 form")
            if tab == "see":
                # What the pointer tells is part of the picture.
                shown.locator(".fv-stack").first.hover(position={"x": 330, "y": 300})
            shown.wait_for_timeout(800)
            file = to / f"play-{tab}.png"
            shown.screenshot(path=str(file))
            # Steps of 5 are not seen, and leave half of the size.
            Image.open(file).convert("RGB").point(lambda level: (level + 2) // 5 * 5).save(file, optimize=True)
            size = file.stat().st_size
            print(f"{file.name}: {size:,} bytes")
            assert size < LARGEST, f"{file.name} is too large for a page"
            context.close()


if __name__ == "__main__":
    sys.exit(shoot())
