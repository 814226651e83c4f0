"""`foveate train`: train a model under compression, by a recipe."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from foveate.commands.options import JsonOption, RevisionOption
from foveate.commands.output import print_line, print_note, progress_bar, silence_transformers, spinner
from foveate.errors import FoveateError
from foveate.numbers import MOST


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML recipe; recipes/ has examples.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where to write checkpoints, and the trained model in DIR/model.",
            show_default="runs/RECIPE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the latest checkpoint, or start if there is none.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print tokens, FLOPs and memory of each stage, and exit."),
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Train this model instead of the recipe's.")
    ] = None,
    revision: RevisionOption = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", max=MOST, help="Run N optimiser steps instead of the recipe's number."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", metavar="N", min=1, max=MOST, help="With --dry-run: N processes.", show_default="1"
        ),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE", help="With --dry-run: hours on devices that foveate cost --devices lists."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", hidden=True)] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model under compression, by a recipe.

    A recipe names data, stages of compression, the weights to train, and seeds.
    Progress goes to stderr, the folder of the trained model to stdout.

    With several GPUs: torchrun --nproc-per-node 8 -m foveate train RECIPE.

    After an interruption, even a kill -9, the same command with --resume ends
    in the same weights.

    Example: foveate train recipes/llavolta/last-stage-compression.yaml --dry-run
    """
    from foveate.train.objectives import parse_recipe
    from foveate.train.settings import RecipeError, read_mapping

    if as_json and not dry_run:
        raise FoveateError("--json prints the table of --dry-run; give both")
    if (processes is not None or device_name is not None) and not dry_run:
        raise FoveateError("--processes and --device are of the estimate of --dry-run; a launcher starts processes")
    given = read_mapping(recipe)
    folder = out or Path("runs") / recipe.stem
    prepare_process()
    if data is not None:
        raise RecipeError(
            "--data belongs to the recipe of the reference model (python -m recipes.reference.train); other recipes "
            "name data themselves"
        )
    if given.get("builds") == "reference":
        raise RecipeError(
            f"{recipe} makes the embedded model from nothing; in a checkout of foveate run: python -m "
            f"recipes.reference.train {recipe}"
        )
    if "builds" in given:
        raise RecipeError(f"{recipe}: builds is reference, or left out to train a model that exists")
    if model is not None:
        given["model"] = model
        # The recipe's revision is of the recipe's model.
        given.pop("revision", None)
    if revision is not None:
        given["revision"] = revision
    if steps is not None:
        if steps < 1:
            raise RecipeError(f"--steps is {steps}; it must be at least 1")
        given.pop("epochs", None)
        given["steps"] = steps
    try:
        parsed = parse_recipe(given)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from None
    if dry_run:
        from foveate.costmodel import device
        from foveate.train.estimate import estimate

        place = None if device_name is None else device(device_name)
        with spinner("Estimating"):
            table = estimate(parsed, processes or 1, place)
        print_line(table.to_json() if as_json else str(table))
        return
    from foveate.train.processes import process_variable
    from foveate.train.run import run

    first = process_variable("RANK") == 0
    with progress_bar("Preparing") if first else nullcontext() as advance:
        made = run(parsed, folder, resume=resume, say=print_note, advance=advance)
    if first:
        print_line(str(made))


def prepare_process() -> None:
    """Set up one process of a run: one CPU thread if processes share the CPUs, and no output of transformers.

    Raises:
        FoveateError: a variable of a launcher such as torchrun is wrong.
    """
    from foveate.train.processes import check_process_variables, process_variable

    check_process_variables()
    if process_variable("LOCAL_WORLD_SIZE") > 1:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
    silence_transformers()
