"""Measure what fewer visual tokens cost in accuracy and save in time.

>>> from foveate.bench import configurations, scenes
>>> task = scenes(20)  # the first questions of the fixed test set
>>> len(task.pictures), [str(spec) or "dense" for spec in configurations(["cluster"], "64,16")]
(2, ['dense', 'cluster:64', 'cluster:16'])

``Benchmark(model, processor, task, specs).run()`` answers all questions and writes a results folder. Specs may be
text, `Spec` or method objects, alone or in a list.
"""

from typing import Any

from foveate.bench.configurations import configurations
from foveate.bench.runner import Benchmark
from foveate.bench.tasks import Task, TaskClip, TaskImage, TaskQuestion, jsonl, scenes
from foveate.renamed import refuse_old_name

__all__ = ["Benchmark", "configurations", "scenes", "jsonl", "Task", "TaskImage", "TaskClip", "TaskQuestion"]


def __getattr__(name: str) -> Any:
    refuse_old_name(__name__, name)
    raise AttributeError(f"module 'foveate.bench' has no attribute {name!r}")
