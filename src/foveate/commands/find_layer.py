"""`foveate find-layer`: the decoder layer from which on a method no longer changes the answer."""

from __future__ import annotations

from typing import Annotated

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    QuestionsFileOption,
    RevisionOption,
    model_title,
    placement_arguments,
)
from foveate.commands.output import (
    add_number_columns,
    console,
    finding,
    loading,
    print_json,
    progress_bar,
    silence_transformers,
    spinner,
    table,
)
from foveate.errors import FoveateError


def find_layer(
    rule: Annotated[str, typer.Argument(metavar="SPEC", help="One step without a place: vtw or pool:0.25.")] = "vtw",
    below: Annotated[
        float, typer.Option("--below", metavar="NATS", help="The largest mean divergence that counts as no change.")
    ] = 0.003,
    data: QuestionsFileOption = None,
    questions: Annotated[
        int,
        typer.Option("--questions", metavar="N", max=100_000, help="How many questions, each about another image."),
    ] = 20,
    model: ModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the first layer from which on a method changes no answers.

    Tries the method at the input of each layer. The divergence is the KL
    divergence of the answer's first token from the dense model's, in nats,
    mean over the questions.

    Example: foveate find-layer pool:0.25 --questions 20
    """
    with spinner("Reading the questions"):
        from foveate.bench import layers
        from foveate.bench.answers import prompt_texts
        from foveate.bench.tasks import jsonl
        from foveate.devices import placement_of
        from foveate.loading import commit_of, load_model, load_processor

        # All input is checked before the model is loaded.
        rule = str(layers.rule_of(rule).method)
        if not 0 <= below < float("inf"):
            raise FoveateError(f"--below is {below:g}; it must be at least 0, as divergences are, and finite")
        if questions < 1:
            raise FoveateError(f"--questions {questions} asks nothing; ask at least 1")
        asked = list(layers.practice(questions)) if data is None else list(jsonl(data).pictures[:questions])
        silence_transformers()
        arguments = placement_arguments(device, dtype, device_map, quantize)
    with finding(model):
        commit = commit_of(model, revision)
        processor = load_processor(model, revision=commit)
        for picture in asked:
            prompt_texts(processor, "{question}", picture)
    with loading(model):
        network = load_model(model, revision=commit, **arguments)
    with progress_bar() as advance:
        found = layers.find_layer(network, processor, rule, asked, below, lambda done, total: advance(done, total, ""))
    placement = placement_of(network)
    if as_json:
        print_json({"model": model_title(model), "revision": commit, **placement.to_dict(), **found.to_dict()})
        return
    screen = console()
    screen.print(f"{found.rule} at the input of one decoder layer, {found.questions} questions", style="bold")
    shown = table()
    add_number_columns(shown, "layer", "divergence (nats)", "same first token")
    for effect in found.effects:
        style = "bold" if found.layer is not None and effect.layer >= found.layer else ""
        shown.add_row(f"{effect.layer}", f"{effect.divergence:.5f}", f"{effect.same:.0%}", style=style)
    screen.print(shown)
    if found.spec is None:
        screen.print(f"No layer: the divergence of the last one is above {below:g}.")
    else:
        screen.print(f"{found.spec}: from this layer on the divergence is at most {below:g}.")
    screen.print(f"Model: {model_title(model, revision)}, {placement.title}.", style="dim")
