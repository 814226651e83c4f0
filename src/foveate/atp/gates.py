"""Soft masks of an image's tokens, in logarithms: how each layer's thresholds lower them.

A token with margin m above its threshold has the mask sigmoid(T m) for a temperature T, and masks multiply from layer
to layer. Adding a mask's logarithm to the attention logits of its key is the same as weighing the key's attention with
the mask and renormalising.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32
from torch import Tensor

_DROPPED: Final = -1e4
"""The log mask of a dropped token: its attention is 0 in every dtype."""
_HALF: Final = log(0.5)


@dataclass
class TokenGates:
    """The masks of one image's tokens after the layers so far.

    Attributes:
        log_mask: `(N,)` float32, what is added to attention logits.
        soft: `(N,)` float32, the same without rounding to 0 and 1, where masks are hard.
    """

    log_mask: Float32[Tensor, "N"]
    soft: Float32[Tensor, "N"]

    @classmethod
    def open(cls, count: int, device: torch.device) -> TokenGates:
        """Return masks of 1 for `count` tokens."""
        zero = torch.zeros(count, device=device)
        return cls(zero, zero)

    @property
    def alive(self) -> Bool[Tensor, "N"]:
        """`(N,)` bool, which tokens have a mask of more than a half."""
        return self.log_mask.detach() > _HALF

    def close(self, margin: Float32[Tensor, "N"], temperature: float, hard: bool) -> Float32[Tensor, ""]:
        """Multiply the masks by those of one layer, and return the share of tokens that is left, a scalar.

        The token with the largest margin keeps its mask, since the method never drops it.

        Args:
            margin: `(N,)` float32, how far each token is above its threshold.
            temperature: the larger, the closer masks are to 0 and 1.
            hard: use masks of 0 and 1 in the forward pass, with the gradient of the soft ones.

        >>> gates = TokenGates.open(4, torch.device("cpu"))
        >>> gates.close(torch.tensor([0.4, -0.2, 0.1, -0.3]), 10.0, hard=True).item()
        0.5
        >>> gates.alive.tolist()
        [True, False, True, False]
        """
        alive = self.alive
        best = margin.detach().masked_fill(~alive, float("-inf")).argmax()
        kept = torch.zeros_like(alive).index_fill(0, best, True)
        step = F.logsigmoid(margin * temperature).masked_fill(kept, 0.0)
        self.soft = self.soft + step
        if hard:
            step = torch.where((margin > 0) | kept, 0.0, _DROPPED) + step - step.detach()
        self.log_mask = self.log_mask + step
        share = self.soft.exp()
        if hard:
            share = share + (self.log_mask.detach().exp() - share).detach()
        return share.mean()
