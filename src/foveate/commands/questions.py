"""What is asked: the options of commands that answer questions, and how they become a task."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from foveate.commands.output import spinner
from foveate.errors import FoveateError, unknown
from foveate.numbers import MOST

if TYPE_CHECKING:
    from foveate.bench import Task
    from foveate.bench.hugging_face import DatasetTask

DATASET_PANEL = "Datasets"
"""The heading under which help lists the options that say how to read a dataset."""

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help='Questions: a JSONL file of {"image", "question", "answer"}, or "video"; a task by name, such as gqa '
        "or pope; a dataset by name (owner/name) or folder.",
        show_default="generated scenes",
    ),
]

ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="MAP",
        help="Of a dataset: which column is what, as question=query,image=img,answer=labels; also choices, id, "
        "image_id, skill.",
        show_default="question, image, answer",
        rich_help_panel=DATASET_PANEL,
    ),
]

SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Of a dataset: such as validation.",
        show_default="the only one; a task's own",
        rich_help_panel=DATASET_PANEL,
    ),
]

SubsetOption = Annotated[
    str | None,
    typer.Option(
        "--subset",
        metavar="NAME",
        help="Of a dataset: one of its parts.",
        show_default="the only one; a task's own",
        rich_help_panel=DATASET_PANEL,
    ),
]

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Of a task by name: a folder with a copy of its dataset.",
        show_default="from the hub",
        rich_help_panel=DATASET_PANEL,
    ),
]

QuestionsOption = Annotated[
    int | None,
    typer.Option(
        "--questions",
        metavar="N",
        max=100_000,
        help="How many questions.",
        show_default="500 about scenes; all of --data",
    ),
]

SkipOption = Annotated[int, typer.Option("--skip", metavar="N", max=MOST, help="Skip the first N images.")]

BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        max=100_000,
        help="How many prompts the model gets at once, padded on the left.",
        show_default="8 images; prompts of one length together, without padding",
    ),
]

LongestOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        max=1_000_000,
        help="The longest answer, in tokens.",
        show_default="16; a task's own",
    ),
]

PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help='What is asked, such as "{question} Answer with one word."; {question} stands for the question.',
        show_default="{question}; a task's own",
    ),
]

SystemOption = Annotated[
    str,
    typer.Option("--system", metavar="TEXT", help="A system prompt, if the model's chat template takes one."),
]

ScoreOption = Annotated[
    str | None,
    typer.Option(
        "--score",
        metavar="NAME",
        help="The metric: words (also short sentences), exact, plain, vqa, anls, relaxed, contains, choice, "
        "yes-no, mme, iou, box, cider.",
        show_default="words; a task's own",
    ),
]

GreedyOption = Annotated[
    bool,
    typer.Option("--greedy", help="Decode without the model's own generation configuration (penalties, ...)."),
]


class Dataset(NamedTuple):
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


def check_asked(questions: int | None, prompt: str | None, score: str | None) -> None:
    """Check what can be told of the options before anything is loaded.

    Raises:
        FoveateError: an option isn't valid.
    """
    from foveate.bench.scoring import scoring_of
    from foveate.prompts import check_prompt

    if questions is not None and questions < 1:
        raise FoveateError(f"--questions is {questions}; it must be at least 1")
    if prompt is not None:
        check_prompt(prompt)
    if score is not None:
        scoring_of(score)


def read_questions(
    data: str | None, questions: int | None, skip: int, frames: int | None, fps: float | None, dataset: Dataset
) -> Task:
    """Return the task that the options name.

    Raises:
        FoveateError: it can't be read, or an option says nothing about it.
    """
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


def check_prompts(task: Task, processor: Any, prompt: str | None, system: str) -> None:
    """Check the prompt of every question, which needs the processor alone, before the model is loaded.

    Args:
        task: what is asked.
        processor: the model's own.
        prompt: what is asked instead of the task's own prompt.
        system: a system prompt, "" for none.

    Raises:
        FoveateError: a question holds what it must not, or the template takes no system prompt.
    """
    from foveate.bench.answers import prompt_texts

    for picture in task.pictures:
        prompt_texts(processor, task.prompt if prompt is None else prompt, picture, system=system.strip())


def typed_command() -> str:
    """Return the command line as typed, without the folder that the program is in."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def report_command(results: Path, data: str | None) -> str:
    """Return the command that makes a page of results, with pictures of the questions if they came from a file.

    >>> report_command(Path("results/mine"), None)
    'foveate report results/mine'
    """
    from foveate.files import is_file

    pictures = ["--data", data] if data is not None and is_file(data) else []
    return shlex.join(["foveate", "report", str(results), *pictures])


def _dataset_task(data: str, dataset: Dataset) -> DatasetTask | None:
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
