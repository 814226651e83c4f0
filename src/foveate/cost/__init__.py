"""The cost model: FLOPs, bytes, cache, memory and time of a call, from a configuration and a spec.

>>> import foveate
>>> foveate.cost("llava-1.5-7b", "cluster:64").kept_tokens
64
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from foveate.cost.device import Device, device, devices
from foveate.cost.estimate import BreakEven, Cost, PartCost, break_even, cost, read_model
from foveate.cost.fields import published

__all__ = [
    "cost",
    "Cost",
    "PartCost",
    "BreakEven",
    "break_even",
    "read_model",
    "Device",
    "device",
    "devices",
    "published",
]


class _Callable(ModuleType):
    """Lets `foveate.cost(...)` work whether the name is this package (once imported) or the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Cost:
        return cost(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
