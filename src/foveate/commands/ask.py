"""`foveate ask`: a question about an image, answered dense and compressed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import (
    DEFAULT_SPECS,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ImageArgument,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    SpecsOption,
    model_title,
    placement_arguments,
)
from foveate.commands.output import (
    JSON_HINT,
    Column,
    console,
    finding,
    fitted_table,
    loading,
    print_json,
    progress_bar,
    silence_transformers,
    spinner,
)
from foveate.errors import FoveateError, shortened

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from foveate.asking import Answer
    from foveate.spec import Spec


def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    model: ModelOption = None,
    revision: RevisionOption = None,
    spec: SpecsOption = DEFAULT_SPECS,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE", help="Draw which tokens are kept over the image, for instance a PNG."
        ),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about an image, dense and compressed.

    Prints side by side: answers, visual tokens, and the times of all parts.

    Example: foveate ask photo.jpg "what is this ?" --spec cluster:64
    """
    from foveate.images import open_image

    with spinner("Reading the image"):
        from foveate import asking
        from foveate.devices import placement_of
        from foveate.families import family_of
        from foveate.families.prompt_check import layout_of_prompt
        from foveate.files import shown_path
        from foveate.loading import commit_of, load_model, load_processor, skeleton
        from foveate.prompts import check_question, question_inputs
        from foveate.schedule import tokens_after
        from foveate.spec import as_spec
        from foveate.view import writable

        # All input is checked before the model is loaded.
        question = check_question(question)
        specs = [as_spec(text) for text in spec or ()]
        opened = open_image(image)
        if picture is not None and _is_one_file(writable(picture), image):
            raise FoveateError(f"--picture would overwrite {shown_path(image)}; choose another name")
        silence_transformers()
        arguments = placement_arguments(device, dtype, device_map, quantize)
    with finding(model):
        commit = commit_of(model, revision)
        processor, family = load_processor(model, revision=commit), family_of(skeleton(model, revision=commit))
        inputs = question_inputs(processor, opened, question)
        layout = layout_of_prompt(family, inputs)
        if picture is not None and not family.knows_grids:
            raise FoveateError(
                f"no picture can be drawn: where the tokens of {family.title} are in the image is unknown; ask without "
                "--picture"
            )
        for each in specs:
            tokens_after(each, family, layout)

    with loading(model):
        network = load_model(model, revision=commit, **arguments)
    answers: list[Answer] = []
    with progress_bar("Asking") as advance:
        for number, each in enumerate((None, *specs)):
            advance(number, 1 + len(specs), f"Asking {each or 'dense'}")
            answers.append(asking.ask(network, processor, inputs, each, max_new_tokens))
    if picture is not None:
        with spinner("Drawing", working=True):
            from foveate.view import save_picture

            save_picture(_panels(network, processor, inputs, opened, question, specs, answers), picture)

    placement = placement_of(network)
    if as_json:
        import torch

        print_json(
            {
                "image": str(image),
                "question": question,
                "model": model_title(model),
                "revision": commit,
                **placement.to_dict(),
                "threads": torch.get_num_threads(),
                "answers": [answer.to_dict() for answer in answers],
                "picture": None if picture is None else str(picture),
            }
        )
        return
    screen = console()
    screen.print(_answer_table(question, answers, screen.width))
    screen.print(f"Model: {model_title(model, revision)}, {placement.title}.", style="dim")
    screen.print(f"Times are milliseconds, the median of {_runs(answers)} after a warm-up.", style="dim")
    if picture is not None:
        screen.print(f"Picture: {picture}")
    screen.print(JSON_HINT, style="dim")


def _is_one_file(picture: Path, image: Path) -> bool:
    """Return whether a picture that may not exist yet is the image itself, by another name or a link."""
    from foveate.files import is_file

    return is_file(picture) and picture.samefile(image)


_COLUMNS = (
    Column("spec", text=True),
    Column("answer", text=True),
    Column("visual tokens", "tokens"),
    Column("of dense", "kept", optional=True),
    Column("mean over layers", "layers", optional=True),
    *map(Column, ("encode", "compress", "prefill", "decode", "total ms")),
)


def _answer_table(question: str, answers: Sequence[Answer], width: int) -> Table:
    rows = []
    for answer in answers:
        times = (answer.encoder, answer.compressor, answer.prefill, answer.decode, answer.total)
        rows.append(
            (
                answer.spec,
                answer.text,
                f"{answer.tokens_after}",
                f"{answer.tokens_after / answer.tokens_before:.1%}",
                f"{answer.mean_over_layers:.1f}",
                *(f"{milliseconds:.1f}" for milliseconds in times),
            )
        )
    shown = fitted_table(_COLUMNS, rows, width, title=shortened(question, 4 * width))
    shown.columns[1].style = "bold"
    return shown


def _runs(answers: Sequence[Answer]) -> str:
    """Say how many runs were timed.

    >>> from types import SimpleNamespace
    >>> _runs([SimpleNamespace(runs=4), SimpleNamespace(runs=5)])
    '4 to 5 runs'
    """
    fewest, most = min(answer.runs for answer in answers), max(answer.runs for answer in answers)
    if most == 1:
        return "one run"
    return f"{most} runs" if fewest == most else f"{fewest} to {most} runs"


def _panels(
    model: Any,
    processor: Any,
    inputs: dict[str, Any],
    image: Image.Image,
    question: str,
    specs: Sequence[Spec],
    answers: Sequence[Answer],
) -> Image.Image:
    """Draw a panel for each answer, dense first."""
    import torch

    from foveate.asking import seen_part
    from foveate.engine import compress
    from foveate.engine.encode import moved
    from foveate.families import family_of
    from foveate.families.prompt_check import layout_of_prompt
    from foveate.view import Panel, draw

    family = family_of(model)
    layout = layout_of_prompt(family, inputs)
    vision = model.config.vision_config
    patch = int(vision.patch_size) * int(getattr(vision, "spatial_merge_size", 1))
    panels = [Panel(layout, "dense", f'{layout.total} tokens: "{answers[0].text}"', patch=patch)]
    inputs = moved(inputs, family.device)
    for spec, answer in zip(specs, answers[1:], strict=True):
        with torch.inference_mode():
            (kept,) = compress(model, inputs, spec).images
        note = f'{kept.after} of {kept.before} tokens: "{answer.text}"'
        panels.append(Panel(layout, str(spec), note, kept.plan, kept.seen, patch))
    return draw(seen_part(processor, image), panels, question)
