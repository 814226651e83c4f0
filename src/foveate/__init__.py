"""foveate: fewer visual tokens for any Hugging Face vision-language model.

>>> import foveate
>>> str(foveate.parse("cluster:64"))
'cluster:64'

Names are loaded when they are first used, so that ``import foveate`` costs nothing: no torch, no transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from foveate.renamed import NEW_NAMES, refuse_old_names

if TYPE_CHECKING:
    from foveate.atp import ATP
    from foveate.costmodel import Cost, Device, cost
    from foveate.embedded import reference
    from foveate.engine import (
        Encoded,
        Report,
        Run,
        ShortInputs,
        apply,
        attach,
        attached_spec,
        compress,
        detach,
        encode,
        timed,
    )
    from foveate.errors import FoveateError, FoveateWarning
    from foveate.keep import Keep
    from foveate.layout import Layout, Segment
    from foveate.loading import load
    from foveate.methods import Method, PixelMethod, ScoredMethod, register
    from foveate.plan import Plan
    from foveate.saved import from_pretrained, save
    from foveate.spec import Spec, Step, as_spec, parse
    from foveate.stream import Stream
    from foveate.tokens import EncoderAttention, EncoderKeys, VisualTokens
    from foveate.voco import MemoryStore, VoCo, VoCoMemory

refuse_old_names()

__version__ = "0.2.0"

__all__ = [
    "apply",
    "attach",
    "detach",
    "attached_spec",
    "compress",
    "encode",
    "timed",
    "Stream",
    "cost",
    "load",
    "save",
    "from_pretrained",
    "reference",
    "as_spec",
    "parse",
    "register",
    "Spec",
    "Step",
    "Method",
    "ScoredMethod",
    "PixelMethod",
    "Plan",
    "Keep",
    "Layout",
    "Segment",
    "VisualTokens",
    "EncoderAttention",
    "EncoderKeys",
    "Run",
    "Report",
    "ShortInputs",
    "Encoded",
    "Cost",
    "Device",
    "FoveateError",
    "FoveateWarning",
    "ATP",
    "VoCo",
    "VoCoMemory",
    "MemoryStore",
]

_HOME = {
    "foveate.atp": ("ATP",),
    "foveate.costmodel": ("cost", "Cost", "Device"),
    "foveate.engine": (
        "apply",
        "attach",
        "attached_spec",
        "detach",
        "compress",
        "encode",
        "timed",
        "Run",
        "Report",
        "ShortInputs",
        "Encoded",
    ),
    "foveate.errors": ("FoveateError", "FoveateWarning"),
    "foveate.keep": ("Keep",),
    "foveate.layout": ("Layout", "Segment"),
    "foveate.loading": ("load",),
    "foveate.methods": ("Method", "ScoredMethod", "PixelMethod", "register"),
    "foveate.plan": ("Plan",),
    "foveate.embedded": ("reference",),
    "foveate.saved": ("from_pretrained", "save"),
    "foveate.spec": ("as_spec", "parse", "Spec", "Step"),
    "foveate.stream": ("Stream",),
    "foveate.tokens": ("VisualTokens", "EncoderAttention", "EncoderKeys"),
    "foveate.voco": ("VoCo", "VoCoMemory", "MemoryStore"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        new = NEW_NAMES.get(f"foveate.{name}")
        # Modules are loaded like names: `foveate.methods.Cluster` needs no import of its own.
        if new is None and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        hint = "" if new is None else f"; it was renamed to {new}"
        raise AttributeError(f"module 'foveate' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
