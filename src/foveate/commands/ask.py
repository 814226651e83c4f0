"""`foveate ask`: a question about an image or a clip, answered dense and compressed."""

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
    FpsOption,
    FramesOption,
    ImageArgument,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    SpecsOption,
    model_for,
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
from foveate.commands.visuals import clip_json, clip_line, fitting_prompt, open_visual
from foveate.errors import FoveateError, shortened

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from foveate.asking import Answer
    from foveate.clips import Clip
    from foveate.spec import Spec
    from foveate.visual_prompts import VisualPrompt


def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    model: ModelOption = None,
    revision: RevisionOption = None,
    spec: SpecsOption = DEFAULT_SPECS,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Draw which tokens are kept over the image, or over the frames of a clip, for instance a PNG.",
        ),
    ] = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    max_new_tokens: MaxNewTokensOption = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about an image or a clip, dense and compressed.

    Prints side by side: answers, visual tokens, and the times of all parts.

    Example: foveate ask photo.jpg "what is this ?" --spec cluster:64
    """
    with spinner("Reading the image"):
        from PIL import Image

        from foveate import asking
        from foveate.devices import placement_of
        from foveate.families import family_of
        from foveate.files import is_folder, shown_path
        from foveate.loading import commit_of, load_model, load_processor, skeleton
        from foveate.prompts import check_question
        from foveate.schedule import tokens_after
        from foveate.spec import as_spec
        from foveate.view import writable

        # All input is checked before the model is loaded.
        question = check_question(question)
        specs = [as_spec(text) for text in spec or ()]
        opened = open_visual(image, frames, fps)
        model = model_for(model, clips=not isinstance(opened, Image.Image))
        if picture is not None and _is_one_file(writable(picture), image):
            raise FoveateError(f"--picture would overwrite {shown_path(image)}; choose another name")
        if picture is not None and is_folder(image) and picture.parent.samefile(image):
            raise FoveateError(f"--picture {shown_path(picture)} would be one of its frames; choose another folder")
        silence_transformers()
        arguments = placement_arguments(device, dtype, device_map, quantize)
    with finding(model):
        commit = commit_of(model, revision)
        processor, family = load_processor(model, revision=commit), family_of(skeleton(model, revision=commit))
        longest = getattr(family.config.get_text_config(), "max_position_embeddings", None)
        # Nobody has asked for so many frames.
        room = longest - max_new_tokens if longest is not None and frames is None and fps is None else None
        opened, found = fitting_prompt(family, processor, image, opened, question, room)
        if picture is not None and not family.knows_grids:
            raise FoveateError(
                f"no picture can be drawn: where the tokens of {family.title} are in the image is unknown; ask without "
                "--picture"
            )
        for each in specs:
            for layout in dict.fromkeys(found.layouts):
                tokens_after(each, family, layout)

    with loading(model):
        network = load_model(model, revision=commit, **arguments)
    answers: list[Answer] = []
    with progress_bar("Asking") as advance:
        for number, each in enumerate((None, *specs)):
            advance(number, 1 + len(specs), f"Asking {each or 'dense'}")
            answers.append(asking.ask(network, processor, found.inputs, each, max_new_tokens))
    if picture is not None:
        with spinner("Drawing", working=True):
            from foveate.view import save_picture

            save_picture(_picture(network, processor, found, opened, question, specs, answers), picture)

    placement = placement_of(network)
    if as_json:
        import torch

        print_json(
            {
                "image": str(image),
                **clip_json(opened, found.way),
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
    if found.way is not None and not isinstance(opened, Image.Image):
        screen.print(clip_line(image, opened, found.way, family.title), soft_wrap=True)
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


def _picture(
    model: Any,
    processor: Any,
    prompt: VisualPrompt,
    opened: Image.Image | Clip,
    question: str,
    specs: Sequence[Spec],
    answers: Sequence[Answer],
) -> Image.Image:
    """Draw what is kept for each answer, dense first: over the image, or over the frames of a clip."""
    import torch
    from PIL import Image

    from foveate.asking import seen_part, token_side
    from foveate.engine import compress
    from foveate.engine.encode import moved
    from foveate.families import family_of
    from foveate.view import Panel, Strip, draw, draw_strips

    family = family_of(model)
    patch = token_side(model.config)
    layouts, count = prompt.layouts, answers[0].tokens_before
    strips = [Strip(layouts, "dense", f'{count} tokens: "{answers[0].text}"', patch=patch)]
    inputs = moved(prompt.inputs, family.device)
    for spec, answer in zip(specs, answers[1:], strict=True):
        with torch.inference_mode():
            kept = compress(model, inputs, spec).images
        note = f'{sum(each.after for each in kept)} of {count} tokens: "{answer.text}"'
        plans, seen = tuple(each.plan for each in kept), tuple(each.seen for each in kept)
        strips.append(Strip(layouts, str(spec), note, plans, seen, patch))
    if isinstance(opened, Image.Image):
        (layout,) = layouts
        panels = [
            Panel(layout, each.title, each.note, next(iter(each.plans), None), next(iter(each.seen), None), patch)
            for each in strips
        ]
        return draw(seen_part(processor, opened), panels, question)
    frames = [seen_part(processor, frame, of_clip=prompt.way != "images") for frame in opened.frames]
    return draw_strips(frames, opened.times, strips, question)
