"""Compare the frames of a clip."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from foveate.tokens import VisualTokens


def by_frame(tokens: VisualTokens) -> Float[Tensor, "B T P D"]:
    """Return the features of a clip frame by frame: `(B, N, D)` -> `(B, T, P, D)`, P tokens per frame."""
    (clip,) = tokens.layout.segments
    images, _, width = tokens.features.shape
    return tokens.features.reshape(images, clip.t, clip.h * clip.w, width)


def likeness(
    frames: Float[Tensor, "*frames P D"], others: Float[Tensor, "*frames P D"]
) -> Float32[Tensor, "*frames P"]:
    """Return the cosine between tokens at the same place of two frames, in float32.

    >>> likeness(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return torch.cosine_similarity(frames.float(), others.float(), dim=-1)
