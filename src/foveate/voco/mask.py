"""Who may look at whom while an image is pressed into VoCo tokens.  Ye et al. 2024, arXiv 2406.12275, Eq. 3.

A *segment* is what one image's VoCo tokens read: its beginning, its visual tokens, the VoCo tokens themselves. What
stands outside of every segment is text. Inside a segment, and among text, attention is plainly causal; from text into
a segment only the VoCo tokens can be seen; a segment sees nothing but itself, so that its memory is the same wherever
the segment stands.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

PADDING = -1
TEXT = 0


def voco_mask(segment: Int64[Tensor, "B S"], voco: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    """Which column each row may look at.

    With one segment per sample this is the mask of the authors' code (llava_llama_1stg.py, make_voco_mask_llava).
    Theirs spans from the first to the last VoCo token of a sample, so with two images the text would see the second
    one; here each image is hidden by its own segment.

    Args:
        segment: `(B, S)` int64: -1 at padding, 0 at text, 1, 2, ... inside the segments.
        voco: `(B, S)` bool: the VoCo tokens.

    Returns:
        `(B, S, S)` bool, rows look at columns. Rows of padding see themselves alone: no softmax is over nothing.

    >>> segment, voco = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 0, 0]]).bool()
    >>> voco_mask(segment, voco)[0, 3].tolist()
    [False, False, True, True, False]
    """
    count = segment.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool, device=segment.device).tril()
    rows, columns = segment[:, :, None], segment[:, None, :]
    seen = (rows == columns) | ((rows == TEXT) & voco[:, None, :])
    itself = torch.eye(count, dtype=torch.bool, device=segment.device)
    return (seen & causal & (columns != PADDING) & (rows != PADDING)) | (itself & (rows == PADDING))


def additive(mask: Bool[Tensor, "B S T"], dtype: torch.dtype) -> Float[Tensor, "B 1 S T"]:
    """The mask as eager and SDPA attention take it: 0 where a row may look, the dtype's lowest number elsewhere."""
    blocked = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return blocked[:, None]
