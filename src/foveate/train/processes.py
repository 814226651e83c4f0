"""Read what a launcher such as torchrun tells each process of a run by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from foveate.errors import FoveateError, quoted
from foveate.numbers import Between, read_whole

__all__ = ["check_process_variables", "process_variable"]

Variable: TypeAlias = Literal["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]

_VARIABLES: Final[Mapping[Variable, tuple[int, Between]]] = {
    "RANK": (0, Between(0)),
    "WORLD_SIZE": (1, Between(1)),
    # Older launchers write -1 where there is one process.
    "LOCAL_RANK": (0, Between(-1)),
    "LOCAL_WORLD_SIZE": (1, Between(1)),
}


def process_variable(name: Variable) -> int:
    """Return what a launcher has set a variable to, or its value for a single process.

    Raises:
        FoveateError: it is no whole number in its range.
    """
    single, within = _VARIABLES[name]
    text = os.environ.get(name, "").strip()
    if not text:
        return single
    try:
        number = read_whole(text)
    except ValueError:
        number = None
    if number is None or number not in within:
        raise FoveateError(
            f"the environment variable {name} is {quoted(text)}, and launchers such as torchrun set it to a whole "
            f"number {within}; unset it to train in one process"
        )
    return number


def check_process_variables() -> None:
    """Check all of these variables.

    Raises:
        FoveateError: one is no whole number in its range, or a process counts itself beyond the number of processes.
    """
    for name in _VARIABLES:
        process_variable(name)
    rank, processes = process_variable("RANK"), process_variable("WORLD_SIZE")
    if rank >= processes:
        raise FoveateError(
            f"the environment variables say that this is process {rank} (RANK, from 0 on) of {processes} (WORLD_SIZE); "
            "unset both to train in one process"
        )
