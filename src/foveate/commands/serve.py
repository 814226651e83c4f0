"""`foveate serve`: vLLM's OpenAI-compatible server with fewer visual tokens."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import JsonOption, RevisionOption
from foveate.commands.output import (
    add_number_columns,
    console,
    finding,
    print_json,
    silence_transformers,
    spinner,
    table,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.costmodel import Cost
    from foveate.serving import SpecChoice


def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder with a Hugging Face model, or its name on the hub."),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="Options of vLLM, after two dashes.", show_default=False),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            "--spec",
            metavar="SPEC",
            help='How to compress, for instance cluster:64; "dense" for not.',
            show_default="FOVEATE_SPEC, or what the model was saved with, or dense",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="SPEC",
            help="What a request may name instead. Repeat for more.",
            show_default="FOVEATE_SPECS, or nothing",
        ),
    ] = None,
    questions: Annotated[
        bool,
        typer.Option(
            "--per-question",
            help="Let methods read the question. An image is then encoded anew for every other prompt about it, "
            "so caches help only where a whole prompt comes again.",
            show_default="FOVEATE_PER_QUESTION, or not",
        ),
    ] = False,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65_535, help="Where to listen.")] = 8000,
    revision: RevisionOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be served, and how vLLM would be started; then exit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a model by vLLM with fewer visual tokens.

    A spec that can't be served is refused before vLLM starts. Options of vLLM follow two dashes.

    Example: foveate serve MODEL --spec cluster:0.25 --allow dense -- --max-model-len 8192
    """
    with spinner("Reading the configuration"):
        from foveate.costmodel import cost, read_model
        from foveate.vllm_plugin.launch import PICTURES, check_vllm, chosen_specs, launch, tokens_left

        silence_transformers()
    more = list(options or ())
    if more and not more[0].startswith("-"):
        raise FoveateError(f"{more[0]!r} is no option of vLLM; only one model can be served")
    with finding(model):
        choice = chosen_specs(model, spec, allow or (), revision=revision, questions=questions)
        specs = list(dict.fromkeys((choice.model.spec("dense"), choice.default, *(choice.allowed or ()))))
        counts = {each.text: tokens_left(choice, each) for each in specs}
        start = launch(model, choice, host=host, port=port, revision=revision, options=more)
        if not dry_run:
            check_vllm()
        # What a request costs whose image has the middle size.
        shapes = read_model(model, revision)
        ends = [
            cost(shapes, None if each.is_dense else each.text, images=[PICTURES[len(PICTURES) // 2]], new_tokens=1)
            for each in (specs[0], choice.default)
        ]
    address = f"http://{host}:{port}"
    if as_json:
        print_json(
            {
                "model": model,
                "address": address,
                "spec": choice.default.text,
                "allowed": None if choice.allowed is None else [each.text for each in choice.allowed],
                "images": [{"width": width, "height": height} for width, height in PICTURES],
                "visual_tokens": counts,
                "visual_kv_bytes": [each.visual_kv_bytes for each in ends],
                "prefill_flops": [each.part("prefill").flops for each in ends],
                "command": list(start.command),
                "environment": dict(start.environment),
            }
        )
    else:
        _print(model, choice, counts, ends, address)
        if dry_run:
            settings = (f"{name}={shlex.quote(value)}" for name, value in start.environment.items())
            console().print(" ".join([*settings, shlex.join(start.command)]), soft_wrap=True)
    if dry_run:
        return
    sys.stdout.flush()
    start.replace_process()


def _print(
    model: str, choice: SpecChoice, counts: dict[str, list[int | None]], costs: list[Cost], address: str
) -> None:
    """Print what is served and what it saves."""
    from foveate.vllm_plugin.launch import PICTURES

    screen = console()
    title = choice.model.family.title
    screen.print(f"{model} ({title}) with {choice.default.text}, on {address}/v1", style="bold", soft_wrap=True)
    shown = table("visual tokens of an image")
    add_number_columns(shown, *(f"{width} x {height}" for width, height in PICTURES))
    for text, numbers in counts.items():
        shown.add_row(text, *(_share(left, whole) for left, whole in zip(numbers, counts["dense"], strict=True)))
    screen.print(shown)
    if not choice.default.is_dense:
        dense, short = costs
        width, height = PICTURES[len(PICTURES) // 2]
        screen.print(
            f"An image of {width} x {height} takes {_megabytes(short)} of KV cache instead of {_megabytes(dense)}, and "
            f"its request {_teraflops(short)} of prefill instead of {_teraflops(dense)}.",
            soft_wrap=True,
        )
    if choice.allowed is None:
        screen.print("Requests can't name a spec; --allow says which they may.")
    else:
        names = ", ".join(each.text for each in choice.allowed)
        screen.print(f'A request may name one: {{"mm_processor_kwargs": {{"foveate": SPEC}}}}; allowed are {names}.')
    screen.print(f"Tokens before and after, counted while it serves: {address}/metrics, foveate_*", style="dim")


def _share(left: int | None, whole: int | None) -> str:
    if left is None:
        return "refused"
    return f"{left:,}" if left == whole or not whole else f"{left:,} ({left / whole:.0%})"


def _megabytes(cost: Any) -> str:
    return f"{cost.visual_kv_bytes / 1e6:,.1f} MB"


def _teraflops(cost: Any) -> str:
    return f"{cost.part('prefill').flops / 1e12:.3g} TFLOPs"
