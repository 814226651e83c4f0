"""The attention mask that compresses images into VoCo tokens.  VoCo-LLaMA, Ye et al. 2024, arXiv 2406.12275, Eq. 3.

A *segment* is what one image's VoCo tokens read: [BOS], the image's visual tokens, and the VoCo tokens themselves.
Everything outside of segments is text. Attention is causal inside a segment and among text; text sees only the VoCo
tokens of a segment; a segment sees only itself, so that its keys and values don't depend on where it stands.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.arguments import check_kind
from foveate.errors import FoveateError

PADDING = -1
TEXT = 0


def voco_mask(segment: Int64[Tensor, "B S"], voco: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    """Return which column each row may attend to.

    With one segment per sample this is the mask of the authors' code (llava_llama_1stg.py, make_voco_mask_llava).
    Theirs spans from the first to the last VoCo token of a sample, so with two images the text would see the second
    one; here each segment hides its own image.

    Args:
        segment: `(B, S)` int64: -1 at padding, 0 at text, 1, 2, ... inside the segments.
        voco: `(B, S)` bool: the VoCo tokens.

    Returns:
        `(B, S, S)` bool, rows attend to columns. Padding attends to itself, so that no softmax is empty.

    >>> segment, voco = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 0, 0]]).bool()
    >>> voco_mask(segment, voco)[0, 3].tolist()
    [False, False, True, True, False]
    """
    check_kind("segment", segment, Tensor, "a tensor (samples, tokens)")
    check_kind("voco", voco, Tensor, "a tensor (samples, tokens)")
    if segment.ndim != 2 or segment.shape != voco.shape or voco.dtype != torch.bool:
        raise FoveateError(
            f"segment is {tuple(segment.shape)} and voco {tuple(voco.shape)} {voco.dtype}; both must be (samples, "
            "tokens), and voco bool"
        )
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    rows, columns = segment[:, :, None], segment[:, None, :]
    visible = (rows == columns) | ((rows == TEXT) & voco[:, None, :])
    diagonal = torch.eye(length, dtype=torch.bool, device=segment.device)
    return (visible & causal & (columns != PADDING) & (rows != PADDING)) | (diagonal & (rows == PADDING))


def additive_mask(mask: Bool[Tensor, "B S T"], dtype: torch.dtype) -> Float[Tensor, "B 1 S T"]:
    """Return a mask for eager and SDPA attention: 0 where a row may attend, else the dtype's lowest number."""
    blocked = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return blocked[:, None]
