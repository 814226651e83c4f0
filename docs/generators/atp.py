"""The measured part of docs/atp.md, from docs/measured/atp.json; the rest of that page is written by hand."""

from __future__ import annotations

import json

from generators.benchmarks import benchmark
from generators.folders import DOCS, MEASURED
from generators.markdown import with_measured_part


def pages() -> dict[str, str]:
    """Return the page."""
    found = json.loads((MEASURED / "atp.json").read_text(encoding="utf-8"))
    text = (DOCS / "atp.md").read_text(encoding="utf-8")
    return {"atp.md": with_measured_part(text, benchmark("atp").tables(found))}
