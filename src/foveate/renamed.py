"""Names of earlier versions that have new ones: importing one raises an error that names the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

NEW_NAMES = {
    "foveate.cli": "foveate.commands",
    "foveate.cost": "foveate.costmodel",
    "foveate.engine.count": "foveate.schedule",
    "foveate.engine.cut": "foveate.engine.prompt",
    "foveate.engine.planning": "foveate.engine.images",
    "foveate.engine.schedule": "foveate.schedule",
    "foveate.engine.text": "foveate.engine.prompt",
    "foveate.engine.watch": "foveate.engine.hooks",
    "foveate.methods.base": "foveate.methods",
    "foveate.methods.density": "foveate.methods.arithmetic.density",
    "foveate.methods.grids": "foveate.methods.arithmetic.grids",
    "foveate.methods.groups": "foveate.methods.arithmetic.groups",
    "foveate.methods.listing": "foveate.listing",
    "foveate.methods.parts": "foveate.methods.arithmetic.parts",
    "foveate.models": "foveate.families",
    "foveate.reference": "foveate.embedded",
}
"""The module that each old one became."""

NEW_HOMES = {
    "foveate.bench.Asked": "foveate.bench.TaskQuestion",
    "foveate.bench.Picture": "foveate.bench.TaskImage",
    "foveate.methods.ATP": "foveate.methods.ATPMethod",  # foveate.ATP is the adapter
    "foveate.spec.aliases_of": "foveate.methods.aliases_of",
    "foveate.spec.register": "foveate.methods.register",
}
"""What became of each class or function that a module no longer has."""


class _RenamedModules(MetaPathFinder):
    """Refuse old module names, which Python finds nowhere else."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname in NEW_NAMES:
            raise ImportError(f"{fullname} was renamed; import {NEW_NAMES[fullname]} instead", name=fullname)


def refuse_old_name(module: str, name: str) -> None:
    """Raise an error that names the new home of a module's old name; for the module's `__getattr__`.

    Raises:
        ImportError: the module had this name in an earlier version. `from module import name` hides any other error.
    """
    old = f"{module}.{name}"
    if old in NEW_HOMES:
        raise ImportError(f"{old} was renamed; use {NEW_HOMES[old]} instead", name=module)


def refuse_old_names() -> None:
    """Install the check of module names once, after all of Python's own finders."""
    if not any(isinstance(finder, _RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(_RenamedModules())
