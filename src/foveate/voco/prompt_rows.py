"""Split a processor's output into rows: the images of each prompt, and its text without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout

IGNORED = -100
"""The label of a token that the loss leaves out."""


@dataclass(frozen=True)
class PromptRow:
    """One row of a batch: its images, which go first, and its text.

    Attributes:
        images: the numbers of its images in the whole batch, in prompt order.
        text: `(T,)` int64, its ids without placeholders, image brackets and [BOS].
        labels: `(T,)` int64 for the text, or None.
        bos: the id of [BOS] if the row began with one. The VoCo tokens of an image have read their own [BOS].
    """

    images: tuple[int, ...]
    text: Int64[Tensor, "T"]
    labels: Int64[Tensor, "T"] | None
    bos: int | None = None

    def with_bos(self) -> PromptRow:
        """Return the row with its [BOS] in front of the text, as the model reads it without images."""
        if self.bos is None:
            return self
        labels = None if self.labels is None else nn.functional.pad(self.labels, (1, 0), value=IGNORED)
        return replace(self, text=nn.functional.pad(self.text, (1, 0), value=self.bos), labels=labels, bos=None)


def bos_id(family: Family) -> int | None:
    """Return the id of [BOS], or None if the decoder has none."""
    config: Any = family.config
    return config.get_text_config().bos_token_id


def ids_around_image(family: Family) -> tuple[list[int], list[int]]:
    """Return the ids before and after an image's visual tokens: [BOS] and the family's image brackets, if any."""
    config: Any = family.config
    bos, before, after = (
        bos_id(family),
        getattr(config, "vision_start_token_id", None),
        getattr(config, "vision_end_token_id", None),
    )
    return [id for id in (bos, before) if id is not None], [] if after is None else [after]


def without_bos(family: Family, ids: Int64[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
    """Return `mask` without each row's first token if that is [BOS]; the same id may end an answer.

    Args:
        family: says which id is [BOS].
        ids: `(B, S)` int64.
        mask: `(B, S)` bool, False at padding.
    """
    bos = bos_id(family)
    return mask if bos is None else mask & ~((ids == bos) & (mask.cumsum(dim=1) == 1))


def prompt_rows(family: Family, inputs: Mapping[str, Any], layouts: Sequence[Layout]) -> list[PromptRow]:
    """Split a batch into rows.

    Args:
        family: says which id is the placeholder, and which ids stand around an image.
        inputs: `input_ids` `(B, S)` int64; `attention_mask` and `labels` of the same shape, if there are any.
        layouts: the batch's images, in prompt order.

    Raises:
        FoveateError: the placeholders don't fit the images.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    labels = inputs.get("labels")
    before, after = ids_around_image(family)
    brackets = before[bos_id(family) is not None :] + after
    is_image = torch.isin(ids, torch.tensor([family.image_token, *brackets], device=ids.device))
    real = torch.ones_like(is_image) if mask is None else mask.bool()
    text = without_bos(family, ids, real)
    has_bos = (text != real).any(dim=1).tolist()
    placeholders = ((ids == family.image_token) & real).sum(dim=1).tolist()
    rows: list[PromptRow] = []
    image = 0
    for row, count in enumerate(placeholders):
        images: list[int] = []
        while count > 0:
            if image >= len(layouts) or layouts[image].total > count:
                raise FoveateError(
                    f"row {row} has {count} image placeholders more than its images have tokens; pass the processor's "
                    "whole output"
                )
            count -= layouts[image].total
            images.append(image)
            image += 1
        kept = text[row] & ~is_image[row]
        bos = bos_id(family) if has_bos[row] else None
        rows.append(PromptRow(tuple(images), ids[row][kept], None if labels is None else labels[row][kept], bos))
    if image != len(layouts):
        raise FoveateError(
            f"{len(layouts)} images came with placeholders for {image}; pass the processor's whole output"
        )
    return rows


def padded_text(
    rows: Sequence[PromptRow],
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"], Int64[Tensor, "B T"] | None]:
    """Return the text of all rows, padded on the left: ids, mask and labels, each `(B, T)` int64."""
    longest = max(row.text.shape[0] for row in rows)

    def padded(values: list[Tensor], fill: int) -> Tensor:
        return torch.stack([nn.functional.pad(value, (longest - value.shape[0], 0), value=fill) for value in values])

    ids = padded([row.text for row in rows], 0)
    mask = padded([torch.ones_like(row.text) for row in rows], 0)
    labels = [row.labels for row in rows if row.labels is not None]
    return ids, mask, padded(labels, IGNORED) if labels else None
