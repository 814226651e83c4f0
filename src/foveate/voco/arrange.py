"""From a processor's prompt to segments and text: images to the front, each with its VoCo tokens behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.models import Family
from foveate.tokens import Layout

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One row of a batch, taken apart.

    Attributes:
        images: the numbers of its images, in prompt order, counted over the whole batch.
        text: `(T,)` int64, everything that is neither image nor a frame around one nor the beginning of the sequence.
        labels: `(T,)` int64 for the text, or None.
    """

    images: tuple[int, ...]
    text: Tensor
    labels: Tensor | None


def framing(family: Family) -> tuple[list[int], list[int]]:
    """The ids that a segment has before and behind its visual tokens: [BOS] and the family's own image brackets."""
    config: Any = family.config
    text_config = config.get_text_config()
    begin = [text_config.bos_token_id] if text_config.bos_token_id is not None else []
    before = getattr(config, "vision_start_token_id", None)
    behind = getattr(config, "vision_end_token_id", None)
    return [*begin, *([before] if before is not None else [])], [behind] if behind is not None else []


def samples(family: Family, inputs: Mapping[str, Any], layouts: Sequence[Layout]) -> list[Sample]:
    """Take the rows of a batch apart.

    Args:
        family: says which id is the placeholder and which ids stand around an image.
        inputs: `input_ids` `(B, S)` int64; `attention_mask` and `labels` of the same shape, if there are any.
        layouts: of the batch's images, in prompt order.

    Raises:
        FoveateError: placeholders and images don't fit together.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    labels = inputs.get("labels")
    before, behind = framing(family)
    dropped = torch.isin(ids, torch.tensor([family.image_token, *before[-2:], *behind], device=ids.device))
    real = torch.ones_like(dropped) if mask is None else mask.bool()
    counts = ((ids == family.image_token) & real).sum(dim=1).tolist()
    found: list[Sample] = []
    image = 0
    for row, count in enumerate(counts):
        mine: list[int] = []
        while count > 0:
            if image >= len(layouts) or layouts[image].total > count:
                raise FoveateError(
                    f"row {row} has {count} image placeholders more than its images have tokens; pass the processor's "
                    "whole output"
                )
            count -= layouts[image].total
            mine.append(image)
            image += 1
        kept = real[row] & ~dropped[row]
        found.append(Sample(tuple(mine), ids[row][kept], None if labels is None else labels[row][kept]))
    if image != len(layouts):
        raise FoveateError(
            f"{len(layouts)} images came with placeholders for {image}; pass the processor's whole output"
        )
    return found
