"""The cost model: FLOPs, bytes, cache, memory and time of a call, counted from a configuration and a spec.

>>> import foveate
>>> foveate.cost("llava-1.5-7b", "cluster:64").kept_tokens
64
"""

from __future__ import annotations

from foveate.costmodel.device import Device, device, devices
from foveate.costmodel.estimate import BreakEven, Cost, PartCost, break_even, cost, cost_of_layouts
from foveate.costmodel.model import Model, counted, read_model
from foveate.costmodel.model_config import comes_along, published, published_sizes

__all__ = [
    "cost",
    "cost_of_layouts",
    "counted",
    "Cost",
    "PartCost",
    "BreakEven",
    "break_even",
    "read_model",
    "Model",
    "Device",
    "device",
    "devices",
    "comes_along",
    "published",
    "published_sizes",
]
