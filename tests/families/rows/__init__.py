"""The families of the contract suite: each module of this folder that has a `ROW` brings one.

A family joins with one file here, named like its `model_type`.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import transformers

from foveate.families import families
from rows.row import PAD, Row, grid, picture

__all__ = ["FAMILIES", "PAD", "ROWS", "Row", "grid", "picture"]

_MODULES = [import_module(f"rows.{module.name}") for module in iter_modules(__path__)]

_EVERY = [module.ROW for module in _MODULES if hasattr(module, "ROW")]

FAMILIES = {row.name for row in _EVERY}
"""The families that have a row, also one that the installed transformers can't run."""

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
_SINCE = {family.name: family.since for family in families()}

ROWS: tuple[Row, ...] = tuple(
    row
    for row in _EVERY
    if row.broken != _VERSION and _SINCE[row.name] <= _VERSION and all(find_spec(package) for package in row.needs)
)

LLAVA: Row = next(row for row in ROWS if row.name == "llava")
"""The family for tests that need one."""
