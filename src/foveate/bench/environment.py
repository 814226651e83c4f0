"""Describe where something was measured; nothing in it names a person or a machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

import torch

from foveate.costmodel.device import processor

__all__ = ["environment"]

_PACKAGES = ("foveate", "torch", "transformers", "numpy", "pillow")


def environment(device: torch.device | str = "cpu", seconds: float | None = None) -> dict[str, Any]:
    """Return the machine and the versions of a measurement that ends now, as JSON data.

    Args:
        device: on which it ran.
        seconds: how long it took, if that is known.

    >>> found = environment("cpu", seconds=1.23)
    >>> found["seconds"], found["device"], "torch" in found["packages"]
    (1.2, 'cpu', True)
    """
    device = torch.device(device)
    return {
        **({} if seconds is None else {"seconds": round(seconds, 1)}),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
