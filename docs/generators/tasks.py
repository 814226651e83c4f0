"""docs/tasks.md: the tasks that `foveate bench` knows by name, and its metrics, from their registries."""

from __future__ import annotations

import importlib

from foveate.bench.hugging_face import DatasetTask
from foveate.bench.published import published, task_called
from foveate.bench.scoring import metrics, scoring_of
from generators.markdown import table

HEAD = """# Tasks and metrics

This page is made by `docs/make.py tasks` from `src/foveate/bench/published/` and `src/foveate/bench/scoring/`, one
small file for each task and metric. [How to measure](measure.md) shows how they are used.

## Tasks

`foveate bench --data gqa` asks the questions of a task that papers report. The dataset comes from the hub, or with
`--data-dir` from a copy on the disk; the extra `foveate[data]` reads it. Prompt and metric are those of the table,
unless `--prompt`, `--score` or `--max-new-tokens` say otherwise. No task needs another model as a judge.

"""

METRICS = """
## Metrics

`--score` chooses a metric. Each returns a score from 0 to 1, and accuracy is the mean. A metric that doesn't fit the
answers is refused before the model is asked.

"""

OWN = """
A task of your own needs no file: `--data` takes a JSONL file, or a dataset with `--columns`. An installed package can
add tasks and metrics by entry points of the groups `foveate.tasks` and `foveate.metrics`, which name a module that
calls `foveate.bench.published.register` or `foveate.bench.scoring.metric`.
"""


def pages() -> dict[str, str]:
    """Return the page."""
    tasks = [task_called(name) for name in published() if task_called(name).paper]
    rows = [[f"`{task.name}`", _summary(task), _dataset(task), f"`{task.score}`", task.paper] for task in tasks]
    prompts = [[f"`{task.name}`", _prompt(task.prompt), str(task.longest)] for task in tasks]
    text = HEAD + table(["task", "what it asks", "dataset, part, split", "metric", "paper"], rows)
    text += "\nWhat is asked, and the most tokens of an answer:\n\n" + table(
        ["task", "prompt", "tokens"], prompts, "llr"
    )
    known = [scoring_of(name) for name in sorted(metrics())]
    known = [each for each in known if each.function.__module__.startswith("foveate.bench.scoring.")]
    rows = [[f"`{each.name}`", each.title, ", ".join(_besides(each.name))] for each in known]
    return {"tasks.md": text + METRICS + table(["metric", "an answer scores", "tables also have"], rows) + OWN}


def _summary(task: DatasetTask) -> str:
    found = importlib.import_module(f"foveate.bench.published.{task.name}").__doc__ or ""
    return found.partition(": ")[2].rstrip(".")


def _prompt(prompt: str) -> str:
    """Return a prompt as code, with its line breaks written out."""
    return f"`{prompt}`".replace("\n", "\\n")


def _dataset(task: DatasetTask) -> str:
    return ", ".join(f"`{part}`" for part in (task.dataset, task.subset, task.split) if part)


def _besides(name: str) -> list[str]:
    """Return what a metric says about all answers together."""
    return {
        "choice": ["the share right in every order, where options are turned"],
        "cider": ["CIDEr in percent"],
        "mme": ["totals of perception and cognition"],
        "yes-no": ["precision, recall and F1 of yes, and its share"],
    }.get(name, [])
