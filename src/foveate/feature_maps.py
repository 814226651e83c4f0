"""A tower whose features are made beforehand, to train what comes after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FeatureMaps(nn.Module):
    """Stands for a tower: pixels `(images, D, rows, columns)` are the features of every layer.

    Args:
        depth: layers of the tower.
        marks: rows in front of the patches, which nothing reads.
    """

    def __init__(self, depth: int, marks: int) -> None:
        super().__init__()
        self.depth = depth
        self.marks = marks

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """Return the features in raster order, with rows for [CLS] and the like before them."""
        from foveate.transformers_api import FeaturesOutput

        hidden = torch.nn.functional.pad(pixel_values.flatten(2).transpose(1, 2), (0, 0, self.marks, 0))
        return FeaturesOutput(last_hidden_state=hidden, hidden_states=(hidden,) * (self.depth + 1))  # pyright: ignore
