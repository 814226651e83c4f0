"""`foveate compare`: tests, power, equal cost and ranks of finished benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.options import JsonOption
from foveate.commands.output import console, print_json, spinner


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders that foveate bench wrote.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="The configuration that differences are taken from.",
            show_default="dense of the first folder",
        ),
    ] = None,
    correct: Annotated[
        str | None,
        typer.Option(
            "--correct",
            metavar="HOW",
            help="Correct probabilities for as many comparisons as there are rows: holm or bh.",
            show_default="no correction",
        ),
    ] = None,
    equal: Annotated[
        str | None,
        typer.Option(
            "--equal",
            metavar="WHAT",
            help="Compare methods at equal tokens, layers (tokens over layers), flops or time (measured).",
            show_default=False,
        ),
    ] = None,
    hard: Annotated[
        str | None,
        typer.Option(
            "--hard",
            metavar="NAME",
            help="Accuracy on the questions that this down-sampling fails and dense doesn't, such as resize:64.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        float,
        typer.Option(
            "--points", metavar="P", min=0.001, max=100, help="Tell how many questions show a difference of P points."
        ),
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Compare the configurations of one benchmark, or of several about the same questions.

    Prints paired differences with bootstrap intervals, a permutation test,
    McNemar's test per skill, ranks, and how many questions would be needed.

    Example: foveate compare results/mine --correct holm --equal time
    """
    from foveate.bench.comparing import compare as compared
    from foveate.bench.comparing import read_results

    with spinner("Drawing images again and again"):
        found = compared(read_results(results), against, correct, equal, hard, points)
    if as_json:
        print_json(found)
        return
    screen = console()
    for part in _tables(found):
        screen.print(part)
        screen.print()
    screen.print(_caption(found), style="dim")


def _tables(found: Mapping[str, Any]) -> list[Any]:
    from foveate.bench.comparing.tables import equal_table, hard_table, main_table, skills_table

    tables = [main_table(found)]
    if found["skills"]:
        tables.append(skills_table(found))
    if "equal" in found and found["equal"]["rows"]:
        tables.append(equal_table(found))
    if "hard" in found:
        tables.append(hard_table(found))
    return tables


def _caption(found: Mapping[str, Any]) -> str:
    from foveate.bench.comparing.tables import caption

    return caption(found)
