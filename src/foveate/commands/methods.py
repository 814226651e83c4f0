"""`foveate methods`: the methods that specs can name."""

from __future__ import annotations

from foveate.commands.options import JsonOption
from foveate.commands.output import Column, console, fitted_table, print_json

_COLUMNS = (
    Column("method", text=True),
    Column("what it does", text=True),
    Column("place", text=True),
    Column("reads question", "question", text=True, optional=True),
    Column("adaptive", text=True, optional=True),
    Column("paper", text=True),
)


def methods(as_json: JsonOption = False) -> None:
    """List the methods that a spec can name."""
    from foveate.listing import listing

    rows = listing()
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    cells = []
    for row in rows:
        place = ",".join(map(str, row.layers)) or row.place
        flags = ("yes" if flag else "" for flag in (row.query_aware, row.adaptive))
        cells.append((row.name, row.headline.split(". ")[0].rstrip(".") + ".", f"@{place}", *flags, row.paper))
    screen = console()
    shown = fitted_table(_COLUMNS, cells, screen.width)
    shown.columns[0].style = "bold"
    screen.print(shown)
    for line in (
        "A spec is METHOD:KEEP: cluster:64 keeps 64 tokens per image, cls:0.25 a quarter. Join steps with +.",
        "Add @PLACE to act elsewhere. @3,7,16 are decoder layers, given here for a decoder of 32.",
        "Adaptive methods can let the image decide how many tokens to keep: prumerge:auto.",
    ):
        screen.print(line)
    screen.print("All options and their defaults: foveate methods --json", style="dim")
