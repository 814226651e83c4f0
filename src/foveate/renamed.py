"""Modules of earlier versions that have new names: importing one raises an error that names the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

NEW_NAMES = {
    "foveate.cli": "foveate.commands",
    "foveate.cost": "foveate.costmodel",
    "foveate.engine.count": "foveate.schedule",
    "foveate.engine.schedule": "foveate.schedule",
    "foveate.models": "foveate.families",
    "foveate.reference": "foveate.embedded",
}
"""The module that each old one became."""


class _RenamedModules(MetaPathFinder):
    """Refuses old module names, which Python finds nowhere else."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname in NEW_NAMES:
            raise ImportError(f"{fullname} was renamed; import {NEW_NAMES[fullname]} instead", name=fullname)


def refuse_old_names() -> None:
    """Install the check once, behind all of Python's own finders."""
    if not any(isinstance(finder, _RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(_RenamedModules())
