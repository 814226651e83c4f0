"""Modules of benchmarks/, which is no package, imported by name."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from generators.folders import DOCS


def benchmark(name: str) -> ModuleType:
    """Import `benchmarks/NAME.py`."""
    folder = str(DOCS.parent / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
