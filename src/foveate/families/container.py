"""Containers of image features, for models that read one tensor per image and for those that read a single tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.transformers_api import FeaturesOutput


class FeatureList(list[Tensor]):
    """Hold the features of each image `(N, D)`; `to` and `reshape` concatenate all of them, `(tokens, D)`.

    Some models concatenate a list of features, others expect one tensor and move it to their device and type. Counts
    may differ between images, so the images can't be stacked.
    """

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Concatenate all images and move them as `Tensor.to` does."""
        return torch.cat(self).to(*args, **kwargs)

    def reshape(self, *shape: int) -> Tensor:
        """Concatenate all images and reshape them."""
        return torch.cat(self).reshape(*shape)


class ImageFeatures(FeaturesOutput):
    """Hold image features as the model's container does, with `pooler_output` always a `FeatureList`.

    `generate` repeats the images of a sample for its beams, and replaces the features by a plain list.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pooler_output" and isinstance(value, Sequence) and not isinstance(value, FeatureList):
            value = FeatureList(value)
        super().__setattr__(name, value)
