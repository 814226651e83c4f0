"""Let torch be imported when it is first used, for commands that may need none of it."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


def defer_torch() -> None:
    """Let `import torch` succeed at once, and import torch when one of its names is first read.

    For programs alone: it changes what `sys.modules` holds. Where torch is there already, or isn't installed, nothing
    happens. `"torch._C" in sys.modules` tells whether torch was imported.
    """
    if "torch" in sys.modules or (spec := importlib.util.find_spec("torch")) is None:
        return
    module = importlib.util.module_from_spec(spec)
    # Whoever imports a module in torch asks for its path, and so for torch.
    del module.__path__
    module.__class__ = _Deferred
    _Deferred.waiting = True
    sys.modules["torch"] = module


def is_deferred() -> bool:
    """Return whether torch was deferred and nothing has used it since."""
    return _Deferred.waiting


class _Deferred(ModuleType):
    """A module that isn't imported yet. importlib's own lazy module is imported by any second `import` of it."""

    waiting = False

    def __getattr__(self, name: str) -> Any:
        """Import the module, and return one of its names."""
        spec: Any = self.__spec__
        self.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
        _Deferred.waiting = False
        self.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            sys.modules.pop(self.__name__, None)
            raise
        return getattr(self, name)
