"""`foveate bench`: accuracy, tokens and time, dense and compressed."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from foveate.commands.options import (
    DeviceMapOption,
    DeviceOption,
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
    console,
    finding,
    loading,
    notes,
    print_json,
    progress_bar,
    silence_transformers,
    spinner,
)
from foveate.errors import FoveateError, unknown
from foveate.numbers import LARGEST_SEED, MOST

if TYPE_CHECKING:
    from foveate.bench import Benchmark, Task
    from foveate.bench.hugging_face import DatasetTask
    from foveate.bench.processes import Place
    from foveate.spec import Spec

DATASET_PANEL: Final = "Datasets"
"""The heading under which help lists the options that say how to read a dataset."""


def bench(
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            metavar="SPEC",
            help="What to measure: cluster at every budget of --keep, cluster:64 at its own. Repeat for more.",
            show_default="pool, cluster, cls and the baselines; of clips, methods and baselines for clips",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="BUDGETS",
            help="Budgets for specs without one: tokens per image (64) or fractions (0.25).",
            show_default="288,144,64,16,4; of clips 0.5,0.25,0.1",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help='Questions: a JSONL file of {"image", "question", "answer"}, or "video"; a task by name, such as gqa '
            "or pope; a dataset by name (owner/name) or folder.",
            show_default="generated scenes",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="MAP",
            help="Of a dataset: which column is what, as question=query,image=img,answer=labels; also choices, id, "
            "image_id, skill.",
            show_default="question, image, answer",
            rich_help_panel=DATASET_PANEL,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="Of a dataset: such as validation.",
            show_default="the only one; a task's own",
            rich_help_panel=DATASET_PANEL,
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            "--subset",
            metavar="NAME",
            help="Of a dataset: one of its parts.",
            show_default="the only one; a task's own",
            rich_help_panel=DATASET_PANEL,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            help="Of a task by name: a folder with a copy of its dataset.",
            show_default="from the hub",
            rich_help_panel=DATASET_PANEL,
        ),
    ] = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match",
            metavar="WHAT",
            help="Choose keeps so that specs at any place equal a budget at @input in this: mean (tokens over layers) "
            "or flops (of the prefill).",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="The configuration that differences in the table are taken from: dense, or a spec with its keep.",
        ),
    ] = "dense",
    model: ModelOption = None,
    revision: RevisionOption = None,
    questions: Annotated[
        int | None,
        typer.Option(
            "--questions",
            metavar="N",
            max=100_000,
            help="How many questions.",
            show_default="500 about scenes; all of --data",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            max=100_000,
            help="How many prompts the model gets at once, padded on the left.",
            show_default="8 images; prompts of one length together, without padding",
        ),
    ] = None,
    skip: Annotated[int, typer.Option("--skip", metavar="N", max=MOST, help="Skip the first N images.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where to write the results.", show_default="a new folder in results/"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, max=LARGEST_SEED, help="The seed of methods that have one, such as random."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            max=1_000_000,
            help="The longest answer, in tokens.",
            show_default="16; a task's own",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help='What is asked, such as "{question} Answer with one word."; {question} stands for the question.',
            show_default="{question}; a task's own",
        ),
    ] = None,
    system: Annotated[
        str,
        typer.Option("--system", metavar="TEXT", help="A system prompt, if the model's chat template takes one."),
    ] = "",
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar="NAME",
            help="The metric: words (also short sentences), exact, plain, vqa, anls, relaxed, contains, choice, "
            "yes-no, mme, iou, box, cider.",
            show_default="words; a task's own",
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Decode without the model's own generation configuration (penalties, ...)."),
    ] = False,
    skills: Annotated[bool, typer.Option("--skills", help="Print accuracy per skill as well.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what compression costs and saves, on questions.

    Compares accuracy, tokens and time of each spec with the dense model, or
    with another spec: paired by question, with 95% confidence intervals.

    To continue an interrupted run, give the same command again.

    Example: foveate bench --spec cluster --spec cls:64 --questions 200
    """
    from foveate.bench.configurations import BUDGETS, configurations, reference_name, unused
    from foveate.bench.scoring import scoring_of
    from foveate.prompts import check_prompt

    if match not in (None, "mean", "flops"):
        raise FoveateError(f"--match {match} is unknown; match mean (tokens over layers) or flops (of the prefill)")
    given, keep = keep, BUDGETS if keep is None else keep
    specs = configurations(spec or (), keep, seed)
    if match is None and (spec or data is None):
        against = reference_name(against, specs, seed)
    budgets: dict[str, float] = {}
    if questions is not None and questions < 1:
        raise FoveateError(f"--questions is {questions}; it must be at least 1")
    if prompt is not None:
        check_prompt(prompt)
    if score is not None:
        scoring_of(score)
    silence_transformers()
    from foveate.bench.processes import this_place

    place = this_place()
    if place.world > 1 and device is None and device_map is None:
        import torch

        device = f"cuda:{place.local}" if torch.cuda.is_available() else "cpu"
    arguments = placement_arguments(device, dtype, device_map, quantize)
    if out is not None:
        from foveate.bench.results import check_results_folder

        check_results_folder(out)
    from foveate.loading import commit_of, find_config, load_model, load_processor

    with finding(model):
        commit = commit_of(model, revision)
    task = _task(data, questions, skip, frames, fps, _Dataset(columns, split, subset, data_dir))
    prompt = task.prompt if prompt is None else prompt
    model = model_for(model, clips=task.clips == len(task.pictures))
    from foveate.bench.answers import prompt_texts
    from foveate.bench.match import matched
    from foveate.bench.report import figures_table, losses, skills_table, table
    from foveate.bench.runner import Benchmark

    lacking: tuple[str, ...] = ()
    if match is not None:
        if task.has_clips:
            raise FoveateError(f"--match {match} counts images, and {data} asks about clips; leave it out")
        config, size = find_config(model, revision=commit), task.pictures[0].load().size
        specs, budgets, lacking = matched(spec or (), keep, match, config, size, seed=seed)
        against = reference_name(against, specs, seed)
    with loading(model):
        processor = load_processor(model, revision=commit)
        # What a question may not hold is known from the processor alone.
        for picture in task.pictures:
            prompt_texts(processor, prompt, picture, system=system.strip())
        if task.has_clips and not spec:
            specs, lacking = _specs_for_clips(task, processor, model, commit, given, seed)
        if match is None:
            against = reference_name(against, specs, seed)
        loaded = load_model(model, revision=commit, **arguments)
    with spinner("Checking the model's images"):
        run = Benchmark(
            loaded,
            processor,
            task,
            specs,
            out,
            max_new_tokens,
            _typed_command(),
            budgets,
            batch,
            revision=commit,
            greedy=greedy,
            prompt=prompt,
            score=score,
            system=system,
        )
    if questions is not None and questions > task.questions:
        notes().print(f"There are {task.questions:,} questions; all of them are asked.")
    for line in (*lacking, *unused(spec or (), given, seed, match)):
        notes().print(line)
    metrics = _measure(run, task.questions * len(specs), place)
    if metrics is None:
        return
    pictures = _pictures(metrics, run.folder.path)
    if as_json:
        print_json({**metrics, "config": run.config, "results": str(run.folder.path)})
        return
    screen = console()
    screen.print(table(metrics, screen.width, against))
    for line in losses(metrics):
        screen.print(line, style="red")
    besides = figures_table(metrics)
    if besides is not None:
        screen.print()
        screen.print(besides)
    several_budgets = len({row["budget"] for row in metrics["configurations"][1:]}) > 1
    per_skill = skills_table(metrics) if skills or not several_budgets else None
    if per_skill is not None:
        screen.print()
        screen.print(per_skill)
    screen.print()
    files = ["metrics.json", "predictions.jsonl", "table.md", *(each.name for each in pictures)]
    screen.print(f"Results: {run.folder.path} ({', '.join(files)})", soft_wrap=True)


class _Dataset(NamedTuple):
    """What the options say about a dataset."""

    columns: str | None
    split: str | None
    subset: str | None
    folder: Path | None

    def refuse(self, why: str) -> None:
        """Refuse the options where they have no meaning."""
        for option, value in zip(("--columns", "--split", "--subset", "--data-dir"), self, strict=True):
            if value is not None:
                raise FoveateError(f"{option} {value} is for datasets, and {why}; leave it out")


def _task(
    data: str | None, questions: int | None, skip: int, frames: int | None, fps: float | None, dataset: _Dataset
) -> Task:
    from foveate.bench.tasks import jsonl, scenes
    from foveate.clips import check_sampling

    check_sampling(frames, fps)
    with spinner("Drawing the test scenes" if data is None else "Reading questions and images"):
        if data is None:
            dataset.refuse("scenes are generated")
            task = scenes(500 if questions is None else questions, skip)
        elif (source := _dataset_task(data, dataset)) is not None:
            from foveate.bench.hugging_face import read_task

            task = read_task(source, questions, skip, dataset.folder)
        else:
            dataset.refuse(f"{data} is a file of questions")
            task = jsonl(data, questions, skip, frames=frames, fps=fps)
    if (frames is not None or fps is not None) and not task.has_clips:
        option = f"--frames {frames}" if fps is None else f"--fps {fps:g}"
        where = "the generated scenes are" if data is None else f"{data} has only"
        raise FoveateError(f"{option} chooses frames of clips, and {where} images; leave it out")
    return task


def _dataset_task(data: str, dataset: _Dataset) -> DatasetTask | None:
    """Return how to ask the questions of a dataset, or None if the data are a file."""
    from foveate.bench.hugging_face import DatasetTask, is_dataset_name, read_columns
    from foveate.bench.published import published, task_called
    from foveate.files import kind_of

    kind = kind_of(data)
    if kind == "missing" and data in published():
        source = task_called(data)
    elif kind == "folder" or (kind == "missing" and is_dataset_name(data)):
        source = DatasetTask(Path(data).name, data)
        if dataset.folder is not None:
            raise FoveateError("--data-dir is for tasks by name; give the folder itself to --data")
    elif kind == "missing" and "." not in data and "/" not in data:
        raise FoveateError(unknown("file, and no task, is called", data, published()))
    else:
        return None
    columns = source.columns if dataset.columns is None else read_columns(dataset.columns, source.columns)
    changed = {name: value for name in ("split", "subset") if (value := getattr(dataset, name)) is not None}
    return replace(source, columns=columns, **changed)


def _specs_for_clips(
    task: Task, processor: Any, model: str | None, commit: str | None, keep: str | None, seed: int | None
) -> tuple[tuple[Spec, ...], tuple[str, ...]]:
    """Return the default configurations for clips, and a line that names those that the first clip is too short for."""
    from foveate.bench.configurations import BUDGETS, CLIP_BUDGETS, CLIP_METHODS, configurations, name_of
    from foveate.clips import Clip
    from foveate.loading import family_without_weights
    from foveate.schedule import tokens_between
    from foveate.visual_prompts import visual_prompt, way_of

    family = family_without_weights(model, revision=commit)
    if way_of(family, processor) != "video":
        return configurations((), BUDGETS if keep is None else keep, seed), ()
    clip = next(loaded for loaded in (picture.load() for picture in task.pictures) if isinstance(loaded, Clip))
    layouts = visual_prompt(family, processor, clip, "?").layouts
    found, left_out = [], []
    for spec in configurations(CLIP_METHODS, CLIP_BUDGETS if keep is None else keep, seed):
        try:
            for layout in layouts:
                tokens_between(spec, family, layout)
        except FoveateError:
            left_out.append(name_of(spec))
        else:
            found.append(spec)
    lines = (f"Left out, since the first clip has too few tokens or frames for them: {', '.join(left_out)}.",)
    return tuple(found), lines if left_out else ()


def _measure(run: Benchmark, answers: int, place: Place) -> dict[str, Any] | None:
    """Run what is left of a benchmark, and return its metrics; of several processes, the first one does."""
    if place.world > 1 and not run.folder.whole:
        share = run.share(place)
        if share is not None:
            share.run()
        return run.gather(place.world) if place.rank == 0 else None
    if place.rank:
        return None
    if run.folder.whole:
        notes().print(f"All {answers:,} answers exist already; nothing is measured again.")
    elif run.done:
        notes().print(f"Continuing: {run.done} of {run.parts} parts exist already.")
    with progress_bar() as advance:
        advance(run.done, run.parts, "")
        return run.run(lambda what, done, total: advance(done, total, what))


def _pictures(metrics: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    """Draw what is missing of the plots, and return those that there are."""
    from foveate.bench.plot import FORMATS, plot

    files = tuple(folder / f"accuracy.{kind}" for kind in FORMATS)
    return files if all(each.exists() for each in files) else plot(metrics, files[0])


def _typed_command() -> str:
    """Return the command line as typed, without the folder that the program is in."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
