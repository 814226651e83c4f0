"""Attention for training on a CPU: written out, in three causal pieces.

The fused CPU kernel's backward pass takes half of a training step; written out in bf16 and compiled, and with the keys
that no query of a piece may see left out, a step over 722 positions takes less than half the time.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME: Final = "causal_pieces"
_PIECES: Final = 3


def causal_pieces(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend causally with an additive mask (B, 1, S, S): (B, heads, S, d) to (B, S, heads, d), no attention map.

    >>> q = torch.randn(1, 2, 7, 4)
    >>> mask = torch.full((7, 7), -1e4).triu(1)[None, None]
    >>> out, _ = causal_pieces(nn.Identity(), q, q, q, mask, 0.5)
    >>> whole = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    >>> torch.allclose(out.transpose(1, 2), whole, atol=1e-5)
    True
    """
    if mask is None or query.shape[2] != key.shape[2]:
        raise ValueError("causal_pieces is for training: it needs an additive mask and as many keys as queries")
    size, out = query.shape[2], []
    piece = -(-size // _PIECES)
    for start in range(0, size, piece):
        end = min(size, start + piece)
        scores = query[:, :, start:end] @ key[:, :, :end].mT * scaling + mask[:, :, start:end, :end]
        out.append(torch.softmax(scores.float(), -1).to(query.dtype) @ value[:, :, :end])
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make it known to transformers as ``causal_pieces``."""
    AttentionInterface.register(NAME, causal_pieces)
    AttentionMaskInterface.register(NAME, eager_mask)
