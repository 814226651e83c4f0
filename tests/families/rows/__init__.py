"""The families of the contract suite: each module of this folder that has a `ROW` brings one.

A family joins with one file here, named like its `model_type`.
"""

from importlib import import_module
from pkgutil import iter_modules

from rows.row import PAD, Row, grid, picture

__all__ = ["PAD", "ROWS", "Row", "grid", "picture"]

_MODULES = [import_module(f"rows.{module.name}") for module in iter_modules(__path__)]

ROWS: tuple[Row, ...] = tuple(module.ROW for module in _MODULES if hasattr(module, "ROW"))
