"""A registry of tasks by name, and the endings that prompts of several share."""

from __future__ import annotations

from typing import Final

from foveate.bench.hugging_face import DatasetTask
from foveate.discovery import Discovery
from foveate.errors import FoveateError, unknown

__all__ = ["LETTER", "SHORT", "published", "register", "task_called"]

SHORT: Final = "{question}\nAnswer the question using a single word or phrase."
"""The prompt of LLaVA-1.5 for short answers (arXiv 2310.03744, Table 13)."""

LETTER: Final = "{question}\nAnswer with the option's letter from the given choices directly."
"""Its prompt for multiple choice."""

_TASKS: dict[str, DatasetTask] = {}
_discovery = Discovery("foveate.bench.published", "foveate.tasks")


def register(task: DatasetTask) -> DatasetTask:
    """Register a task under its name, which `bench --data` takes.

    Raises:
        FoveateError: the name is taken.
    """
    if task.name in _TASKS:
        raise FoveateError(f'a task is called "{task.name}" already; choose another name')
    _TASKS[task.name] = task
    return task


def published() -> tuple[str, ...]:
    """Return the names of all tasks.

    >>> len(published()) >= 13
    True
    """
    _discovery.load()
    return tuple(sorted(_TASKS))


def task_called(name: str) -> DatasetTask:
    """Return a task by its name.

    Raises:
        FoveateError: no task has that name.
    """
    if name not in published():
        raise FoveateError(unknown("task is called", name, published()))
    return _TASKS[name]
