"""Containers of image features in the form that a model reads: a list with one tensor per image, or one tensor.

They hold plain lists and plain tensors, so that whatever moves or rebuilds a model's inputs (accelerate's hooks, data
parallelism) treats them as it treats the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from foveate.transformers_api import FeaturesOutput

if TYPE_CHECKING:
    from torch import Tensor


def image_features(features: Sequence[Tensor], stacked: bool = False, row_tokens: Sequence[int] = ()) -> FeaturesOutput:
    """Make a container of the features of each image, `(M, D)`.

    Args:
        features: of each image; they may differ in length.
        stacked: whether the model reads one tensor, `(images, M, D)`, and not a list.
        row_tokens: visual tokens of each row of the prompt, for a container that `generate` gets with beams.

    >>> image_features([torch.ones(2, 4), torch.ones(3, 4)], stacked=True).pooler_output.shape
    torch.Size([1, 5, 4])
    """
    if not stacked:
        return FeaturesOutput(pooler_output=list(features))  # pyright: ignore[reportArgumentType]
    if len({len(each) for each in features}) == 1:
        return FeaturesOutput(pooler_output=torch.stack(list(features)))  # pyright: ignore[reportArgumentType]
    joined = JoinedFeatures(pooler_output=torch.cat(list(features))[None])  # pyright: ignore[reportArgumentType]
    joined.row_tokens = tuple(row_tokens)
    return joined


class JoinedFeatures(FeaturesOutput):
    """Hold images of different length as one tensor `(1, tokens, D)`, for a model that reads a tensor.

    For its beams `generate` repeats images, and takes the whole tensor for one: its copies come in the wrong order,
    which is mended here.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        tokens = getattr(self, "row_tokens", ())
        if name == "pooler_output" and tokens and isinstance(value, torch.Tensor) and len(value) > 1:
            rows = value.split(list(tokens), dim=1)
            value = torch.cat([row.flatten(0, 1) for row in rows])[None]
        super().__setattr__(name, value)


def repeated_features(features: Sequence[Tensor]) -> RepeatedFeatures:
    """Make a container of the features of each image, `(M, D)`, for a model that reads `last_hidden_state`.

    >>> repeated_features([torch.ones(2, 4), torch.ones(3, 4)]).last_hidden_state.shape
    torch.Size([1, 5, 4])
    """
    return RepeatedFeatures(pooler_output=list(features))  # pyright: ignore[reportArgumentType]


class RepeatedFeatures(FeaturesOutput):
    """Hold the features of images as a list for `generate`, which repeats it for beams, and as what the model reads.

    `last_hidden_state` is `(1, tokens, D)`, and always has the images of `pooler_output`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "pooler_output" and value is not None:
            super().__setattr__("last_hidden_state", torch.cat(list(value))[None])
