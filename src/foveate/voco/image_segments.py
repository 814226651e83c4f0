"""What the decoder reads of an image: `[BOS] image VoCo...`, as embeddings and positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout
from foveate.voco.embeddings import decoder_device_and_dtype, embedding_table
from foveate.voco.prompt_rows import ids_around_image


@dataclass(frozen=True)
class ImageSegments:
    """The segments of images of one layout.

    Attributes:
        embeddings: `(B, S, D)`, the VoCo tokens last.
        positions: `(axes, S)` int64.
        end: the position id of the token that follows.
    """

    embeddings: Float[Tensor, "B S D"]
    positions: Int64[Tensor, "axes S"]
    end: int


def image_segments(
    family: Family, features: Float[Tensor, "B N D"], layout: Layout, voco: Float[Tensor, "n D"]
) -> ImageSegments:
    """Build the segments of images.

    Args:
        family: bound to the model that reads.
        features: `(B, N, D)`, the images at the decoder's input.
        layout: all images have it.
        voco: `(n, D)`, the embeddings of the VoCo tokens.

    Raises:
        FoveateError: text stands between the image's tokens.
    """
    before, after = ids_around_image(family)
    table = embedding_table(family)
    # The encoder's dtype may differ from the decoder's.
    features = features.to(decoder_device_and_dtype(family)[1])
    device, images = features.device, features.shape[0]

    def embedded(ids: list[int]) -> Tensor:
        return table(torch.tensor(ids, dtype=torch.int64, device=device)).expand(images, -1, -1)

    if len(layout.run_lengths) > 1 or any(token.is_text for token in layout.structural):
        raise FoveateError(
            f"{family.title} puts text between the rows or tiles of an image, and VoCo tokens read an image alone, "
            "without text; use another method for this model"
        )
    start, (span,) = len(before), family.image_spans(layout)
    rest = len(after) + voco.shape[0]
    axes = family.position_axes
    positions = [
        torch.arange(start).expand(axes, -1),
        family.image_positions(layout) + start,
        (torch.arange(rest) + start + span).expand(axes, -1),
    ]
    parts = [embedded(before), features, embedded(after), voco.to(features).expand(images, -1, -1)]
    return ImageSegments(torch.cat(parts, dim=1), torch.cat(positions, dim=1).to(device), start + span + rest)


def decoder_positions(positions: Int64[Tensor, "axes B S"]) -> Tensor:
    """Return position ids as the decoder takes them: `(B, S)` if there is one axis, else `(axes, B, S)`."""
    return positions[0] if positions.shape[0] == 1 else positions
