"""Measure what fewer visual tokens cost in accuracy and save in time.

>>> from foveate.bench import configurations, scenes
>>> task = scenes(20)  # the first questions of the fixed test set
>>> len(task.pictures), [str(spec) or "dense" for spec in configurations(["cluster"], "64,16")]
(2, ['dense', 'cluster:64', 'cluster:16'])

`scenes`, `jsonl` and `read_task` make tasks; ``read_task(task_called("pope"))`` reads one that papers report.
``Benchmark(model, processor, task, specs).run()`` answers all questions and writes a results folder. Specs may be
text, `Spec` or method objects, alone or in a list.
"""

from typing import Any

from foveate.bench.configurations import configurations
from foveate.bench.hugging_face import Columns, DatasetTask, read_task
from foveate.bench.published import published, task_called
from foveate.bench.runner import Benchmark
from foveate.bench.tasks import StoredImage, Task, TaskClip, TaskImage, TaskQuestion, jsonl, scenes
from foveate.renamed import refuse_old_name

__all__ = [
    "Benchmark",
    "configurations",
    "scenes",
    "jsonl",
    "read_task",
    "task_called",
    "published",
    "DatasetTask",
    "Columns",
    "Task",
    "TaskImage",
    "TaskClip",
    "TaskQuestion",
    "StoredImage",
]


def __getattr__(name: str) -> Any:
    refuse_old_name(__name__, name)
    raise AttributeError(f"module 'foveate.bench' has no attribute {name!r}")
