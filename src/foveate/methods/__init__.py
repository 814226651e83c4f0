"""Methods: one rule a file, and all that the author of one needs.

Each module of this folder is found by itself, and so are the modules that installed packages name under the entry point
group `foveate.methods`. All are imported when the first name of a method is looked up.

>>> from foveate.methods import Cluster, method_names
>>> Cluster is method_class("cluster"), "cluster" in method_names()
(True, True)
"""

from __future__ import annotations

from typing import Any

from foveate.arguments import check_kind
from foveate.discovery import Discovery
from foveate.errors import FoveateError, KeepError, SpecError, unknown
from foveate.keep import Keep
from foveate.layout import Layout, Segment, Structural, one_row
from foveate.method import (
    ALL,
    AUTO,
    Effort,
    Method,
    Per,
    PixelMethod,
    Positions,
    ResizeMode,
    ScoredMethod,
    Step,
)
from foveate.plan import Plan
from foveate.registry import ALIASES, METHODS, register
from foveate.renamed import refuse_old_name
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    EncoderAttention,
    EncoderKeys,
    Origin,
    Pixels,
    Place,
    RotaryLogits,
    Signal,
    Signals,
    Text,
    VisualTokens,
)

__all__ = [
    "register",
    "Method",
    "ScoredMethod",
    "PixelMethod",
    "Plan",
    "VisualTokens",
    "Keep",
    "ALL",
    "AUTO",
    "Positions",
    "Per",
    "ResizeMode",
    "Place",
    "Step",
    "Effort",
    "Layout",
    "Segment",
    "Structural",
    "one_row",
    "Origin",
    "Signal",
    "Signals",
    "EncoderAttention",
    "EncoderKeys",
    "Pixels",
    "DecoderAttention",
    "DecoderLogits",
    "DecoderKeys",
    "DecoderInput",
    "RotaryLogits",
    "Text",
    "Behind",
    "FoveateError",
    "KeepError",
    "method_names",
    "method_class",
    "aliases",
    "aliases_of",
]

DISCOVERY = Discovery(__name__, "foveate.methods")


def method_names() -> tuple[str, ...]:
    """List the names of all methods, sorted: foveate's own and those of installed packages."""
    DISCOVERY.load()
    return tuple(sorted(METHODS))


def method_class(name: str) -> type[Method]:
    """Find the class of a method by its name or an alias.

    Raises:
        SpecError: no method has the name; the text gives the nearest one.
    """
    check_kind("the name of a method", name, str, "a text such as cluster")
    DISCOVERY.load()
    name = ALIASES.get(name, name)
    if name not in METHODS:
        raise SpecError(unknown("method is called", name, method_names()))
    return METHODS[name]


def aliases() -> tuple[str, ...]:
    """List all other names that specs may use, sorted."""
    DISCOVERY.load()
    return tuple(sorted(ALIASES))


def aliases_of(name: str) -> tuple[str, ...]:
    """List what else a method is called, sorted."""
    return tuple(alias for alias in aliases() if ALIASES[alias] == name)


def __getattr__(name: str) -> Any:
    """Find the class of a method in this folder, such as `foveate.methods.Cluster`."""
    if not name.startswith("_"):
        for cls in _classes():
            if cls.__name__ == name:
                return cls
        refuse_old_name(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(cls.__name__ for cls in _classes())})


def _classes() -> list[type[Method]]:
    DISCOVERY.load()
    return [cls for cls in METHODS.values() if cls.__module__.startswith(f"{__name__}.")]
