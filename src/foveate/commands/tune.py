"""`foveate tune`: the cheapest spec that is good enough on a model and its questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DtypeOption,
    FpsOption,
    FramesOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    model_for,
    placement_arguments,
)
from foveate.commands.output import (
    JSON_HINT,
    Column,
    console,
    finding,
    fitted_table,
    loading,
    notes,
    print_json,
    progress_bar,
    silence_transformers,
    spinner,
)
from foveate.commands.questions import (
    BatchOption,
    ColumnsOption,
    DataDirOption,
    DataOption,
    Dataset,
    GreedyOption,
    LongestOption,
    PromptOption,
    QuestionsOption,
    ScoreOption,
    SkipOption,
    SplitOption,
    SubsetOption,
    SystemOption,
    check_asked,
    check_prompts,
    read_questions,
    report_command,
    typed_command,
)
from foveate.device_names import is_device_name
from foveate.numbers import LARGEST_SEED

if TYPE_CHECKING:
    from foveate.tune import Search


def tune(
    max_drop: Annotated[
        float,
        typer.Option("--max-drop", metavar="SHARE", help="How much of the accuracy may be lost: 0.01 is one point."),
    ] = 0.01,
    model: ModelOption = None,
    data: DataOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Where the spec shall be fast: a name of `foveate cost --devices`, such as h100, or a file that "
            "`foveate calibrate` wrote; or where the model runs and is timed: cpu, cuda, cuda:1, mps.",
            show_default="cuda if there is a GPU, else cpu",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="NAMES",
            help="What to search, such as cluster,cls,stride; none for --spec alone.",
            show_default="all without weights",
        ),
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(
            "--places",
            metavar="PLACES",
            help="Where each is tried: own, pixels, encoder, features, input, decoder layers (4), shares of its depth "
            "(1/2).",
            show_default="own; 1/2 as well for methods of the decoder",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="BUDGETS",
            help="Budgets: fractions (0.25) or tokens per image (64).",
            show_default="0.5,0.25,0.1",
        ),
    ] = None,
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec", metavar="SPEC", help="One more candidate, such as resize:0.5+cluster:64. Repeat for more."
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option("--held-out", metavar="SHARE", help="The share of the images that judge what was chosen."),
    ] = 0.5,
    finalists: Annotated[
        int, typer.Option("--finalists", metavar="N", min=1, max=100, help="How many specs the search leaves.")
    ] = 6,
    columns: ColumnsOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    data_dir: DataDirOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    revision: RevisionOption = None,
    questions: QuestionsOption = None,
    batch: BatchOption = None,
    skip: SkipOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write.", show_default="a new folder in results/"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Decides which images are held out."),
    ] = 0,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            "--new-tokens",
            metavar="N",
            min=1,
            max=1_000_000,
            help="Tokens of an answer, for predicted times.",
            show_default="what the right answers have",
        ),
    ] = None,
    max_new_tokens: LongestOption = None,
    prompt: PromptOption = None,
    system: SystemOption = "",
    score: ScoreOption = None,
    greedy: GreedyOption = False,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cheapest spec that is good enough on your model and questions.

    Races methods x places x budgets on some of the questions, and verifies
    the choice on the others, beside dense and baselines.

    To continue an interrupted run, give the same command again.

    Example: foveate tune --max-drop 0.05 --questions 400 --methods cluster,cls,stride
    """
    from foveate.schedule.depth import PUBLISHED_DEPTH
    from foveate.tune import proposed
    from foveate.tune.search import check_bound, check_search_folder

    check_bound(max_drop, "--max-drop")
    check_asked(questions, prompt, score)
    runs_on, target = (device, None) if device is None or is_device_name(device) else (None, device)
    if target is not None:
        from foveate.costmodel.device import device as device_of

        device_of(target)
    # Names and budgets are read before the model is there, whose depth only decides which layers are meant.
    proposed(PUBLISHED_DEPTH, methods, places, keep, spec or ())
    silence_transformers()
    arguments = placement_arguments(runs_on, dtype, device_map, quantize)
    if out is not None:
        check_search_folder(out)
    from foveate.loading import commit_of, load_model, load_processor
    from foveate.tune import Search, parts_of

    with finding(model):
        commit = commit_of(model, revision)
    task = read_questions(data, questions, skip, frames, fps, Dataset(columns, split, subset, data_dir))
    parts_of(task, held_out, seed)
    model = model_for(model, clips=task.clips == len(task.pictures))
    with loading(model):
        processor = load_processor(model, revision=commit)
        check_prompts(task, processor, prompt, system)
        loaded = load_model(model, revision=commit, **arguments)
    with spinner("Predicting what each candidate costs"):
        search = Search(
            loaded,
            processor,
            task,
            max_drop,
            out,
            device=target,
            methods=methods,
            places=places,
            keep=keep,
            specs=spec or (),
            finalists=finalists,
            held_out=held_out,
            seed=seed,
            new_tokens=new_tokens,
            longest=max_new_tokens,
            command=typed_command(),
            batch=batch,
            revision=commit,
            greedy=greedy,
            prompt=prompt,
            score=score,
            system=system,
        )
    _tell_before(search)
    with progress_bar("Searching") as advance:
        result = search.run(lambda what, done, whole: advance(done, whole, what))
    if as_json:
        print_json({**result, "folder": str(search.folder)})
        return
    _print(result, search.folder, data)


def _tell_before(search: Search) -> None:
    """Say what is searched, and what so few images can tell."""
    from foveate.tune.search import left_out_text
    from foveate.tune.verdict import fewest_images, shown_by

    lines = [f"{len(search.candidates)} candidates on {search.parts.search.questions:,} questions."]
    if search.left_out:
        lines.append(f"Left out: {left_out_text(search.left_out)}.")
    images, least = len(search.parts.held_out.pictures), fewest_images(search.max_drop)
    if images < least:
        lines.append(
            f"{images} held-out images are few: a spec that changes no answer on them may still lose "
            f"{shown_by(images) * 100:.1f} points on others. {least} rule out a drop of {search.max_drop * 100:g}."
        )
    for line in lines:
        notes().print(line, soft_wrap=True)


def _print(result: Mapping[str, Any], folder: Path, data: str | None) -> None:
    from foveate.tune.tables import HEADS, ROUND_HEADS, caption, cells, round_cells
    from foveate.tune.verdict import sentences

    screen = console()
    optional = {"stay", "best so far", "chance"}
    heads = [Column(head, text=head in ("round", "best so far"), optional=head in optional) for head in ROUND_HEADS]
    part, judge = result["search"], result["held_out"]
    title = f"The search, on {part['questions']:,} questions about {part['images']:,} images"
    screen.print(fitted_table(heads, round_cells(result), screen.width, title=title))
    optional = {"layers", "predicted ms", "measured ms"}
    heads = [Column(head, text=head in ("", "spec", "bound"), optional=head in optional) for head in HEADS]
    title = f"Verified on {judge['questions']:,} held-out questions about {judge['images']:,} images"
    screen.print(fitted_table(heads, cells(result), screen.width, title=title))
    screen.print(caption(result), style="dim")
    screen.print()
    for line in sentences(result):
        screen.print(f"- {line}")
    screen.print()
    screen.print(f"Results: {folder} (tune.json, table.md; held-out is a folder of foveate bench)", soft_wrap=True)
    screen.print(f"A page to pass on: {report_command(folder, data)}", soft_wrap=True)
    screen.print(JSON_HINT, style="dim")
