"""From a processor's prompt to segments and text: images to the front, each with its VoCo tokens behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One row of a batch, taken apart.

    Attributes:
        images: the numbers of its images, in prompt order, counted over the whole batch.
        text: `(T,)` int64, everything that is neither image nor a frame around one nor the beginning of the sequence.
        labels: `(T,)` int64 for the text, or None.
        begin: the id of [BOS] if the row began with one. A segment of an image brings its own.
    """

    images: tuple[int, ...]
    text: Tensor
    labels: Tensor | None
    begin: int | None = None

    def alone(self) -> Sample:
        """The row as the model reads it behind no image: with its [BOS]."""
        if self.begin is None:
            return self
        labels = None if self.labels is None else nn.functional.pad(self.labels, (1, 0), value=IGNORED)
        return replace(self, text=nn.functional.pad(self.text, (1, 0), value=self.begin), labels=labels, begin=None)


def framing(family: Family) -> tuple[list[int], list[int]]:
    """The ids that a segment has before and behind its visual tokens: [BOS] and the family's own image brackets."""
    config: Any = family.config
    begin = [bos] if (bos := beginning(family)) is not None else []
    before = getattr(config, "vision_start_token_id", None)
    behind = getattr(config, "vision_end_token_id", None)
    return [*begin, *([before] if before is not None else [])], [behind] if behind is not None else []


def beginning(family: Family) -> int | None:
    """The id of [BOS], if the decoder has one."""
    config: Any = family.config
    return config.get_text_config().bos_token_id


def without_beginning(family: Family, ids: Tensor, real: Tensor) -> Tensor:
    """`real` `(B, S)` without each row's first id if it is [BOS]; elsewhere the same id may end an answer."""
    bos = beginning(family)
    return real if bos is None else real & ~((ids == bos) & (real.cumsum(dim=1) == 1))


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
    brackets = before[beginning(family) is not None :] + behind
    dropped = torch.isin(ids, torch.tensor([family.image_token, *brackets], device=ids.device))
    real = torch.ones_like(dropped) if mask is None else mask.bool()
    text = without_beginning(family, ids, real)
    begun = (text != real).any(dim=1).tolist()
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
        kept = text[row] & ~dropped[row]
        begin = beginning(family) if begun[row] else None
        found.append(Sample(tuple(mine), ids[row][kept], None if labels is None else labels[row][kept], begin))
    if image != len(layouts):
        raise FoveateError(
            f"{len(layouts)} images came with placeholders for {image}; pass the processor's whole output"
        )
    return found
