"""Features for models that take them in whatever form: a list per image, or one tensor for all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.transformers_api import FeaturesOutput


class FeatureList(list[Tensor]):
    """The features of each image `(N, D)`; all of them in one tensor `(tokens, D)` to whoever asks as of a tensor.

    Some models concatenate the list that they are given, others move one tensor to their device and type. Counts may
    differ between images, so one tensor has no place for them side by side.
    """

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Concatenate all images and move them as `Tensor.to` does."""
        return torch.cat(self).to(*args, **kwargs)

    def reshape(self, *shape: int) -> Tensor:
        """Concatenate all images and reshape them."""
        return torch.cat(self).reshape(*shape)


class ImageFeatures(FeaturesOutput):
    """A model's own container, in which `pooler_output` stays a `FeatureList`.

    `generate` repeats the images of a sample for its beams, and puts a plain list in place of what it found.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pooler_output" and isinstance(value, Sequence) and not isinstance(value, FeatureList):
            value = FeatureList(value)
        super().__setattr__(name, value)
