"""`foveate bench`: what fewer visual tokens cost, as a table."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.bench.configurations import BUDGETS

if TYPE_CHECKING:
    from rich.console import Console

    from foveate.bench.tasks import Task


def bench(
    spec: Annotated[
        list[str] | None,
        typer.Option(help="A configuration: cluster gets every budget, cluster:64 stands alone. May be repeated."),
    ] = None,
    keep: Annotated[str, typer.Option(help="Budgets for specs without one: tokens (64) or shares (0.25).")] = BUDGETS,
    data: Annotated[
        Path | None,
        typer.Option(help='Your questions: a JSONL file of {"image", "question", "answer", "skill"?}.'),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(help="Choose keeps so that all specs equal a budget at @input in this: mean (tokens) or flops."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A local model directory; the embedded reference model if left out.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="How many of the first questions. [default: 500 scenes questions; all of --data]")
    ] = None,
    skip: Annotated[int, typer.Option(help="Leave out this many of the first images.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The results folder. [default: a name inside results/]")] = None,
    seed: Annotated[int | None, typer.Option(help="For every method that has one; part of the spec.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens that an answer may have.")] = 16,
    skills: Annotated[bool, typer.Option("--skills", help="Print accuracy per skill, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON and nothing else.")] = False,
) -> None:
    """Measure accuracy, tokens and time of compressed against dense, with paired 95 % intervals.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    from rich.console import Console

    from foveate.bench.configurations import METHODS, configurations
    from foveate.errors import FoveateError

    if max_new_tokens < 1:
        raise FoveateError(f"--max-new-tokens {max_new_tokens} leaves no room for an answer; give at least 1")
    if match not in (None, "mean", "flops"):
        raise FoveateError(f"--match {match} is not known; match mean (tokens over layers) or flops (of the prefill)")
    specs = configurations(spec or (), keep, seed)
    budgets: dict[str, float] = {}
    if questions is not None and questions < 1:
        raise FoveateError(f"--questions {questions} asks nothing; ask at least 1")
    notes = Console(stderr=True)
    task = _task(data, questions, skip, notes)
    from foveate.bench.match import matched
    from foveate.bench.plot import plot
    from foveate.bench.report import WIDE, losses, skills_table, table
    from foveate.bench.runner import Benchmark

    with notes.status("Loading the model"):
        loaded, processor = _model(model)
        if match is not None:
            size = task.pictures[0].load().size
            specs, budgets, lacking = matched(spec or METHODS, keep, match, loaded.config, size, seed=seed)
            for line in lacking:
                notes.print(line, highlight=False)
        run = Benchmark(loaded, processor, task, specs, out, max_new_tokens, _command(), budgets)
    if run.folder.whole:
        notes.print(f"All {task.questions * len(specs):,} answers are there already; nothing is measured again.")
    elif run.done:
        notes.print(f"Going on after an interruption: {run.done} of {run.parts} parts are there already.")
    metrics = _run(run, notes)
    picture = run.folder.path / "accuracy.png"
    if not picture.exists():
        plot(metrics, picture)
    if as_json:
        sys.stdout.write(
            json.dumps({**metrics, "config": run.config, "results": str(run.folder.path)}, indent=1) + "\n"
        )
        return
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=WIDE)
    screen.print(table(metrics, screen.width))
    for line in losses(metrics):
        screen.print(line, style="red", highlight=False)
    shown = {row["budget"] for row in metrics["configurations"][1:]}
    per_skill = skills_table(metrics) if skills or len(shown) <= 1 else None
    if per_skill is not None:
        screen.print()
        screen.print(per_skill)
    screen.print()
    drawn = ", accuracy.png" if picture.exists() else ""
    screen.print(
        f"Full results: {run.folder.path} (metrics.json, predictions.jsonl, table.md{drawn})",
        highlight=False,
        soft_wrap=True,
    )


def _task(data: Path | None, questions: int | None, skip: int, notes: Console) -> Task:
    from foveate.bench.tasks import jsonl, scenes

    with notes.status("Making the test scenes" if data is None else "Reading questions and images"):
        if data is None:
            return scenes(500 if questions is None else questions, skip)
        return jsonl(data, questions, skip)


def _model(path: Path | None) -> tuple[Any, Any]:
    from transformers.utils import logging

    from foveate.loading import load

    # One sign of life is enough, and it is ours.
    logging.disable_progress_bar()
    return load(path)


def _run(run: Any, notes: Console) -> dict[str, Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        bar = progress.add_task("", total=run.parts, completed=run.done)
        return run.run(lambda what, done, whole: progress.update(bar, description=what, completed=done, total=whole))


def _command() -> str:
    """The line that was typed, without the place where the program is installed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
