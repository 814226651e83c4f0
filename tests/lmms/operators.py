"""What the import of torchvision needs beside a torch for CPUs, where its own operators don't load."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch.library import Library

library = Library("torchvision", "DEF")
try:
    torch.ops.load_library(str(Path(str(getattr(find_spec("torchvision"), "origin", None))).with_name("_C.so")))
except OSError:
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
