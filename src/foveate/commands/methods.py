"""`foveate methods`: the methods that specs can name."""

from __future__ import annotations

from foveate.commands.options import JsonOption
from foveate.commands.output import console, print_json, table


def methods(as_json: JsonOption = False) -> None:
    """List the methods that a spec can name."""
    from foveate.listing import listing

    rows = listing()
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    shown = table()
    shown.add_column("method", style="bold", no_wrap=True)
    shown.add_column("what it does")
    shown.add_column("place", no_wrap=True)
    shown.add_column("reads question")
    shown.add_column("adaptive")
    shown.add_column("paper", no_wrap=True)
    for row in rows:
        place = ",".join(map(str, row.layers)) or row.place
        flags = ("yes" if flag else "" for flag in (row.query_aware, row.adaptive))
        shown.add_row(row.name, row.headline.split(". ")[0].rstrip(".") + ".", f"@{place}", *flags, row.paper)
    screen = console()
    screen.print(shown, highlight=False)
    for line in (
        "A spec is METHOD:KEEP: cluster:64 keeps 64 tokens per image, cls:0.25 a quarter. Join steps with +.",
        "Add @PLACE to act elsewhere. @3,7,16 are decoder layers, given here for a decoder of 32.",
        "Adaptive methods can let the image decide how many tokens to keep: prumerge:auto.",
    ):
        screen.print(line, highlight=False)
    screen.print("All options and their defaults: foveate methods --json", style="dim", highlight=False)
