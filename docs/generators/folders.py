"""Where pages, measurements and pictures are."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1]
MEASURED = DOCS / "measured"
PICTURES = DOCS / "pictures"
