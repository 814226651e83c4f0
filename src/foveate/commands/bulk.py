"""`foveate bulk`: questions about very many images, answered to a folder of Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    placement_arguments,
)
from foveate.commands.output import (
    console,
    finding,
    print_json,
    print_note,
    progress_bar,
    silence_transformers,
    spinner,
)
from foveate.errors import FoveateError


def bulk(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help='Rows with "image" and "question": a Parquet file, a folder of them, or JSONL.',
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder for Parquet files.", show_default=False)],
    spec: Annotated[
        str, typer.Option("--spec", metavar="SPEC", help='How to compress, for instance cluster:64; "dense" for not.')
    ] = "dense",
    features: Annotated[
        bool, typer.Option("--features", help="Keep the compressed features of each image instead of an answer.")
    ] = False,
    actors: Annotated[
        int,
        typer.Option(
            "--actors",
            metavar="N",
            min=0,
            max=100_000,
            help="Processes of Ray, each with its own model and GPU; 0 works in this one, without Ray.",
        ),
    ] = 0,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, max=65_536, help="Prompts that go through the model at once.")
    ] = 8,
    model: ModelOption = None,
    revision: RevisionOption = None,
    max_new_tokens: MaxNewTokensOption = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about very many images; start it again to go on after an interruption.

    Each row of the output has id, answer, visual tokens, error, spec and the model's fingerprint.
    A broken image is a row with an error.

    Example: foveate bulk rows.parquet answers --spec cluster:64 --actors 2
    """
    with spinner("Reading the rows"):
        from foveate.bulk import Answer, Compress, run
        from foveate.loading import commit_of

        silence_transformers()
        placed = placement_arguments(device, dtype, device_map, quantize)
        if features and max_new_tokens != 16:
            raise FoveateError("--features makes no answers; leave out --max-new-tokens")
    with finding(model):
        commit = commit_of(model, revision)
    common = {"model": model, "revision": commit, "batch": batch, **placed}
    work = Compress(spec, **common) if features else Answer(spec, **common, max_new_tokens=max_new_tokens)
    with progress_bar("Compressing" if features else "Answering") as advance:
        done = run(source, output, work, actors=actors, progress=lambda rows, of: advance(rows, of or rows, "rows"))
    if as_json:
        print_json({"output": str(output), "rows": done.rows, "new": done.new, "errors": done.errors})
        return
    console().print(f"{output}: {done.rows:,} rows, {done.new:,} of them new, {done.errors:,} with an error")
    if done.errors:
        print_note('column "error" says why')
