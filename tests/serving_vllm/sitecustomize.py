"""Make torchvision importable in every process that vLLM starts, beside a torch for CPUs.

vLLM needs torchvision, whose wheel is for CUDA: its operators don't load, and its import fails. This folder stands in
PYTHONPATH while the tests run, so Python imports this file first. It declares the operators that the import names.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_declared = []


class _Torchvision(MetaPathFinder):
    """Acts once, when torchvision is imported first; finds no module itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch
        from torch.library import Library

        found = find_spec("torchvision")
        if found is None or found.origin is None:
            return None
        try:
            torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
        except OSError:
            if hasattr(torch.ops.torchvision, "nms"):
                return None
            operators = Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(operators)
        return None


sys.meta_path.insert(0, _Torchvision())
