"""src/foveate/listed/: what the classes of methods and families say, which commands list without importing them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from foveate.families import families
from foveate.listing import Listing, Support, described_families, described_methods
from foveate.methods import method_class


def pages() -> dict[str, str]:
    """Return both files by their paths from docs/; methods and families of installed packages are left out."""
    own = {family.name for family in families() if family.__module__.startswith("foveate.families.")}
    methods = [
        each for each in described_methods() if method_class(each.name).__module__.startswith("foveate.methods.")
    ]
    return {
        "../src/foveate/listed/families.json": _rows(each for each in described_families() if each.name in own),
        "../src/foveate/listed/methods.json": _rows(methods),
    }


def _rows(rows: Iterable[Listing | Support]) -> str:
    return json.dumps([row.to_dict() for row in rows], indent=1, ensure_ascii=False) + "\n"
