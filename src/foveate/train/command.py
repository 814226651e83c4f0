"""`foveate train`: run a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from foveate.errors import FoveateError


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; recipes/ has examples.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run's folder: checkpoints, and the trained model in DIR/model."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint, or begin if there is none yet.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print tokens, FLOPs and memory per stage; stop.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR", help="Train this model instead of the recipe's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="This many optimiser steps instead of the recipe's length.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON and nothing else.")] = False,
) -> None:
    """Train a model under compression, by a recipe: stages, data, what is trained, seeds.

    For several processes: accelerate launch -m foveate.train RECIPE, with the same options. After an interruption,
    even by kill -9, the same command with --resume ends in the same weights.
    """
    from foveate.train.objectives import parse_recipe
    from foveate.train.settings import RecipeError, read_mapping

    if as_json and not dry_run:
        raise FoveateError("--json prints the table of --dry-run; give both")
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
    if steps is not None:
        if steps < 1:
            raise RecipeError(f"--steps is a whole number from 1 on, not {steps}")
        given.pop("epochs", None)
        given["steps"] = steps
    try:
        parsed = parse_recipe(given)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from None
    if dry_run:
        from foveate.train.estimate import estimate

        typer.echo(estimate(parsed).to_json() if as_json else str(estimate(parsed)))
        return
    from foveate.train.run import run

    run(parsed, folder, resume=resume, say=_say)


def _say(text: str) -> None:
    typer.echo(text)


def prepare_process() -> None:
    """Use one thread where several processes share the CPUs, and silence transformers' progress bars and advice."""
    from transformers.utils import logging

    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def call(command: Callable[..., None], name: str) -> None:
    """Run a function as a command of its own and end the process; errors are one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    try:
        app(prog_name=name)
    except FoveateError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on at the last checkpoint", err=True)
        sys.exit(2)
