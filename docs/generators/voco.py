"""The measured part of docs/voco.md, from docs/measured/voco.json; the rest of that page is written by hand."""

from __future__ import annotations

import json

from generators.benchmarks import benchmark
from generators.folders import DOCS, MEASURED
from generators.markdown import with_measured_part


def pages() -> dict[str, str]:
    """Return the page."""
    found = json.loads((MEASURED / "voco.json").read_text(encoding="utf-8"))
    text = (DOCS / "voco.md").read_text(encoding="utf-8")
    return {"voco.md": with_measured_part(text, benchmark("voco").table(found) + "\n")}
