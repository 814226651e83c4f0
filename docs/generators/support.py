"""docs/support.md: which method works on which family.

The engine schedules every method with its default options on a model of every family, which has its default
configuration and no weights. Nothing is written by hand: a refusal is the engine's own error.
"""

from __future__ import annotations

import warnings

from foveate import FoveateWarning
from foveate.families import Family, families, family_of
from foveate.listing import Listing, listing
from foveate.loading import model_of_type
from foveate.methods import method_class
from foveate.support import example_family, why_refused
from generators.markdown import fill, table

HEAD = """\
# Which method works on which family

Families that take the same methods share a column. On models [without a family](families/generic.md), which the last
column shows, methods that need to know the encoder are refused; on some of these, those that act inside the decoder
are, too ([types of models](model-types.md)). The number after a no is its reason, listed below the table.
`foveate families MODEL` tells the same of one model.

`python docs/make.py support` asks the engine for each entry, and `tests/families` runs every pair on a tiny random
model of the real architecture.

"""

UNDESCRIBED = "janus"
"""A type of model that no family describes."""
MANY = 4
"""Families in a column whose names don't fit into its title."""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"support.md": page()}


def page() -> str:
    """Return the text of docs/support.md."""
    methods = [each for each in listing() if method_class(each.name).__module__.startswith("foveate.methods.")]
    reasons: dict[str, int] = {}
    columns: dict[tuple[str, ...], list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        for each in families():
            columns.setdefault(_column(methods, example_family(each), reasons), []).append(each.title)
        other = _column(methods, family_of(model_of_type(UNDESCRIBED)), reasons)
    titles = [_title(names) for names in columns.values()]
    rows = []
    for number, method in enumerate(methods):
        given = [cells[number] for cells in (*columns, other)]
        rows.append([f"[`{method.name}`](methods/{method.name}.md)", *given])
    named = [f"**{_title(names)}**: {', '.join(names)}." for names in columns.values() if len(names) >= MANY]
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    parts = ["\n\n".join(map(fill, named)), table(["method", *titles, "no family"], rows), notes]
    return HEAD + "\n\n".join(part.strip() for part in parts) + "\n"


def _column(methods: list[Listing], family: Family, reasons: dict[str, int]) -> tuple[str, ...]:
    """Return the entries of all methods for one family."""
    return tuple(_cell(method, family, reasons) for method in methods)


def _title(names: list[str]) -> str:
    return ", ".join(names) if len(names) < MANY else f"{len(names)} families"


def _cell(method: Listing, family: Family, reasons: dict[str, int]) -> str:
    reason = why_refused(method, family)
    return f"no ({reasons.setdefault(reason, len(reasons) + 1)})" if reason else "yes"
