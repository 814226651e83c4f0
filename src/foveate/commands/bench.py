"""`foveate bench`: accuracy, tokens and time, dense and compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from foveate.errors import FoveateError
from foveate.numbers import LARGEST_SEED

if TYPE_CHECKING:
    from foveate.bench import Benchmark, Task
    from foveate.bench.processes import Place
    from foveate.spec import Spec


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
    data: DataOption = None,
    columns: ColumnsOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    data_dir: DataDirOption = None,
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
    questions: QuestionsOption = None,
    batch: BatchOption = None,
    skip: SkipOption = 0,
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
    max_new_tokens: LongestOption = None,
    prompt: PromptOption = None,
    system: SystemOption = "",
    score: ScoreOption = None,
    greedy: GreedyOption = False,
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

    if match not in (None, "mean", "flops"):
        raise FoveateError(f"--match {match} is unknown; match mean (tokens over layers) or flops (of the prefill)")
    given, keep = keep, BUDGETS if keep is None else keep
    specs = configurations(spec or (), keep, seed)
    if match is None and (spec or data is None):
        against = reference_name(against, specs, seed)
    budgets: dict[str, float] = {}
    check_asked(questions, prompt, score)
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
    task = read_questions(data, questions, skip, frames, fps, Dataset(columns, split, subset, data_dir))
    model = model_for(model, clips=task.clips == len(task.pictures))
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
        check_prompts(task, processor, prompt, system)
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
            typed_command(),
            budgets,
            batch,
            revision=commit,
            greedy=greedy,
            prompt=task.prompt if prompt is None else prompt,
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
    screen.print(f"A page to pass on: {report_command(run.folder.path, data)}", soft_wrap=True)


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
