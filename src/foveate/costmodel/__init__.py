"""The cost model: FLOPs, bytes, cache, memory and time of a call, from a configuration and a spec.

>>> import foveate
>>> foveate.cost("llava-1.5-7b", "cluster:64").kept_tokens
64
"""

from __future__ import annotations

from foveate.costmodel.device import Device, device, devices
from foveate.costmodel.estimate import BreakEven, Cost, PartCost, break_even, cost, read_model
from foveate.costmodel.fields import published

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
