"""`foveate train`: run a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


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
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Real pictures for the reference model's recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON and nothing else.")] = False,
) -> None:
    """Train a model under compression, by a recipe: stages, data, what is trained, seeds.

    Several processes: accelerate launch -m foveate.train RECIPE, with the same options. After an interruption, also
    by kill -9, the same command with --resume ends in the same weights.
    """
    from foveate.errors import FoveateError
    from foveate.train.recipe import RecipeError, at_least, parse_recipe, read_mapping

    if as_json and not dry_run:
        raise FoveateError("--json prints the table of --dry-run; give both")
    given = read_mapping(recipe)
    folder = out or Path("runs") / recipe.stem
    _quiet()
    _set_threads()
    builds = given.pop("builds", None)
    if builds not in (None, "reference"):
        raise RecipeError(f"{recipe}: builds is reference, or left out to train a model that is there; not {builds!r}")
    if builds is not None:
        from foveate.train.reference import command

        command(given, folder, data, resume=resume, dry_run=dry_run, model=model, steps=steps)
        return
    if data is not None:
        raise RecipeError("--data belongs to the recipe of the reference model; other recipes name data themselves")
    if model is not None:
        given["model"] = model
    if steps is not None:
        at_least(steps, 1, "--steps")
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


def _set_threads() -> None:
    """One thread per process where several share a machine without a GPU."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)


def _quiet() -> None:
    """Keep transformers' own progress bars and advice out of our output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
