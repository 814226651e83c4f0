"""Where the images of a batch stand in their prompts, and the masks of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from foveate.atp.gates import TokenGates
from foveate.engine.prompt import WantedPredictions, image_columns
from foveate.engine.signals import ImageColumns
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout, Structural


@dataclass
class PromptImage:
    """One image of a batch.

    Attributes:
        row: the row of the batch that it is in.
        layout: its grid.
        content: `(N,)` int64, the columns of its content tokens.
        structural: `(S,)` int64, the columns of its structural tokens, such as newlines.
        columns: where the image and its prompt's text stand, for signals.
        gates: the masks of its content tokens.
    """

    row: int
    layout: Layout
    content: Int64[Tensor, "N"]
    structural: Int64[Tensor, "S"]
    columns: ImageColumns
    gates: TokenGates


def find_prompt_images(
    family: Family, ids: Int64[Tensor, "B S"], mask: Tensor, layouts: Sequence[Layout], wanted: WantedPredictions
) -> list[PromptImage]:
    """Return the images of a batch of whole prompts, in prompt order.

    Args:
        family: says which id is the placeholder.
        ids: `(B, S)` int64, the prompts.
        mask: `(B, S)`, 0 at padding.
        layouts: the batch's images, in prompt order.
        wanted: says where each image's prompt ends.

    Raises:
        FoveateError: placeholders don't fit the images, or an image has no text.
    """
    sizes = [layout.total for layout in layouts]
    placeholder = image_columns(family, family.placeholders(ids), layouts)
    visual = placeholder.cpu()
    if int(visual.sum()) != sum(sizes):
        raise FoveateError(
            f"{int(visual.sum())} placeholders came for images of {sum(sizes)} tokens; pass the processor's output"
        )
    ends = wanted.prompt_ends(placeholder, sizes)
    row_of, column_of = visual.nonzero().unbind(1)
    is_text = mask.cpu().bool() & ~visual
    device, begin = ids.device, 0
    images: list[PromptImage] = []
    for layout, size, end in zip(layouts, sizes, ends, strict=True):
        own, row = column_of[begin : begin + size], int(row_of[begin])
        begin += size
        text = is_text[row, : end + 1].nonzero().squeeze(1)
        if not len(text):
            raise FoveateError(f"row {row} has an image and no text; the thresholds read the question")
        content = own[layout.places].to(device)
        structural = own[[token.place for token in layout.structural]].to(device)
        last = torch.tensor([end], device=device)
        columns = ImageColumns(torch.tensor([row], device=device), content[None], text[None].to(device), last)
        gates = TokenGates.open(layout.content, device)
        images.append(PromptImage(row, layout, content, structural, columns, gates))
    return images


def column_log_masks(images: Sequence[PromptImage], rows: int, columns: int) -> Float32[Tensor, "B S"]:
    """Return the log mask of every column of a batch, `(B, S)` float32: 0 at text.

    A newline or another structural token has the largest mask of the content tokens that it belongs to; one between
    rows has no larger one than all that follows it.

    Args:
        images: the batch's images; at least one.
        rows: B.
        columns: S.
    """
    where: list[Tensor] = []
    values: list[Tensor] = []
    for image in images:
        log_mask = image.gates.log_mask
        where.append(image.row * columns + image.content)
        values.append(log_mask)
        if len(image.structural):
            where.append(image.row * columns + image.structural)
            values.append(torch.stack([_of_structural(log_mask, token) for token in image.layout.structural]))
    flat = torch.zeros(rows * columns, device=values[0].device)
    return flat.index_put((torch.cat(where),), torch.cat(values)).view(rows, columns)


def _of_structural(log_mask: Tensor, token: Structural) -> Tensor:
    """Return the log mask of a structural token, `()`, from those of all content tokens `(N,)`."""
    own = log_mask[token.begin : token.end].amax()
    return torch.minimum(own, log_mask[token.end :].amax()) if token.between else own
