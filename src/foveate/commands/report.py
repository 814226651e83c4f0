"""`foveate report`: results of benchmarks as one HTML file, to pass on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.commands.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RevisionOption,
    model_title,
    placement_arguments,
)
from foveate.commands.output import (
    JSON_HINT,
    console,
    finding,
    loading,
    notes,
    print_json,
    silence_transformers,
    spinner,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.bench import Task
    from foveate.report import Examples, Measured


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Folders that foveate bench or tune has written.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write.", show_default="report.html in the first folder"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="The questions that were asked, to show their pictures.",
            show_default="generated scenes, if they were asked about",
        ),
    ] = None,
    skip: Annotated[
        int, typer.Option("--skip", metavar="N", min=0, help="What foveate bench was given as --skip.")
    ] = 0,
    pictures: Annotated[
        int,
        typer.Option("--pictures", metavar="N", min=0, max=1_000, help="Show at most so many pictures of a run."),
    ] = 24,
    kept: Annotated[
        bool, typer.Option("--kept", help="Show what each spec keeps of a picture, too: loads the model.")
    ] = False,
    model: ModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write the figures as SVG as well.", show_default=False),
    ] = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="The page's title.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """Make one HTML file of results: findings, figures, tables, changed questions.

    The file needs no network and nothing beside it. Several results stand
    side by side.

    Example: foveate report results/mine --kept
    """
    from foveate.files import check_writable_file, shown_path
    from foveate.report import Examples, sentences, write_figures, write_page
    from foveate.report.figures import needed

    needed()
    out = results[0] / "report.html" if out is None else out
    if out.suffix.lower() not in (".html", ".htm"):
        raise FoveateError(f"--out {shown_path(out)} must end in .html; a report is a page")
    if model is not None and not kept:
        raise FoveateError(f"--model {model} is only needed to draw what is kept; add --kept, or leave it out")
    with spinner("Reading results"):
        runs = _read(results)
        check_writable_file(out)
    shown: dict[str, Examples] = {}
    with spinner("Opening pictures"):
        tasks = {run.name: _task(run, data, skip) for run in runs} if pictures else {}
    for run in runs:
        if pictures and tasks[run.name] is None:
            line = "Pictures are missing: give the questions' file as --data."
            if kept:
                line = "Pictures are missing, and so is what is kept of them: give the questions' file as --data"
                line += " and the model as --model." if model is None else "."
            shown[run.name] = Examples(lines=(line,))
    network = processor = None
    if kept and any(task is not None for task in tasks.values()):
        from foveate.loading import commit_of, load_model, load_processor

        silence_transformers()
        arguments = placement_arguments(device, dtype, None, None)
        with finding(model):
            commit = commit_of(model, revision)
        with loading(model):
            processor = load_processor(model, revision=commit)
            network = load_model(model, revision=commit, **arguments)
    with spinner("Drawing", working=True):
        from foveate.report import examples

        for run in runs:
            if (task := tasks.get(run.name)) is not None:
                shown[run.name] = examples(run, task, pictures, network, processor)
        write_page(runs, out, shown, title)
        drawn = (
            [] if figures is None else [file for run in runs for file in write_figures(run, _place(figures, run, runs))]
        )
    if as_json:
        print_json(
            {
                "report": str(out),
                "figures": [str(file) for file in drawn],
                "model": model_title(model, revision) if kept else None,
                "findings": {run.name: sentences(run) for run in runs},
            }
        )
        return
    screen = console()
    for run in runs:
        if len(runs) > 1:
            screen.print(run.name, style="bold")
        for sentence in sentences(run):
            screen.print(f"- {sentence}")
    for line in {line for each in shown.values() for line in each.lines}:
        notes().print(line)
    screen.print(f"Report: {out} ({out.stat().st_size / 1e6:.1f} MB; opens without a network)", soft_wrap=True)
    if drawn:
        screen.print(f"Figures: {', '.join(str(file) for file in drawn)}", soft_wrap=True)
    screen.print(JSON_HINT, style="dim")


def _read(results: list[Path]) -> tuple[Measured, ...]:
    """Read results of benchmarks, and of searches what they measured on held-out questions, with their verdict."""
    from foveate.report import read_runs
    from foveate.tune import HELD_OUT, read_result
    from foveate.tune import sentences as verdict

    searches = [read_result(folder) for folder in results]
    runs = read_runs([folder if found is None else folder / HELD_OUT for folder, found in zip(results, searches)])
    names = [folder.resolve().name for folder in results]
    return tuple(
        run if found is None else replace(run, said=tuple(verdict(found)), name=name if len(runs) == 1 else run.name)
        for run, found, name in zip(runs, searches, names, strict=True)
    )


def _task(run: Measured, data: Path | None, skip: int) -> Task | None:
    """Return the task that a run answered; None if its pictures can't be found without a file."""
    from foveate.bench import jsonl, scenes
    from foveate.report.examples import checked_task
    from foveate.tune import questions_before, same_part

    if data is None and run.metrics["task"] != "scenes":
        return None
    digest = str(run.config["data"])
    # A search answers parts of a task, and whole tasks are read.
    whole = questions_before(digest)
    questions = run.metrics["questions"] if whole is None else whole
    task = scenes(questions, skip) if data is None else jsonl(data, questions, skip)
    return checked_task(run, task if whole is None else same_part(task, digest))


def _place(folder: Path, run: Measured, runs: tuple[Measured, ...]) -> Path:
    """Return where the figures of a run go: into a folder of their own if there are several runs."""
    return folder if len(runs) == 1 else folder / run.name.replace("/", "-")
