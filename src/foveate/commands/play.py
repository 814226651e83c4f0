"""`foveate play`: a page to play with, in the browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    MaxNewTokensOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    model_title,
    placement_arguments,
)
from foveate.commands.output import console, finding, loading, print_note, silence_transformers, spinner
from foveate.errors import FoveateError


def play(
    model: ModelOption = None,
    revision: RevisionOption = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="DIR",
            help="A results folder of foveate bench, or a folder of such folders, to compare in the page.",
            show_default="results, if it holds some",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=1, max=65_535, help="The port.", show_default="the first free one from 7860 on"
        ),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
) -> None:
    """Serve a page to play with: answers side by side, what is kept, what it costs.

    Works offline; nothing is fetched from elsewhere. Ctrl-C ends it.

    Example: foveate play --model path/to/model
    """
    with spinner("Reading options"):
        from foveate.loading import commit_of, load_model, load_processor
        from foveate.play import check_installed
        from foveate.play.results import found_results

        silence_transformers()
        arguments = placement_arguments(device, dtype, device_map, quantize)
        usual = Path("results")
        found: dict[str, Path] = {}
        if results is not None:
            found = found_results(results)
        elif usual.is_dir():
            with suppress(FoveateError):
                found = found_results(usual)
        check_installed()
    with finding(model):
        commit = commit_of(model, revision)
        processor = load_processor(model, revision=commit)
    with loading(model):
        network = load_model(model, revision=commit, **arguments)
    with spinner("Building the page", working=True):
        from foveate.play.page import served
        from foveate.play.player import Player, Players
        from foveate.play.workbench import Workbench

        title = model_title(model, revision)
        players = Players(
            Player(network, processor, title, max_new_tokens),
            (lambda: _clip_player(arguments, max_new_tokens)) if model is None else None,
        )
        page = served(Workbench(players, model, found), host, port, wait=False)
    console().print(f"The page is at {page.local_url}")
    if host not in ("127.0.0.1", "localhost", "::1"):
        print_note("warning: everybody who reaches this machine can use the page; there is no password")
    page.block_thread()


def _clip_player(arguments: dict[str, Any], longest: int) -> Any:
    """Load the embedded model for clips."""
    from foveate.embedded.clips import clip_reference
    from foveate.play.player import Player

    model, processor = clip_reference()
    return Player(model, processor, "the embedded model for clips", longest)
