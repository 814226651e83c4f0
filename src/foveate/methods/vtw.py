"""Drop every visual token from one layer on.  Visual Tokens Withdrawal, Lin et al. 2024, arXiv 2405.05803."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.methods import Layout, Method, Plan, VisualTokens, register
from foveate.plan import SELECTED


@register("vtw")
@dataclass(frozen=True)
class VTW(Method):
    """Drop all visual tokens at the input of decoder layer k; later layers have only what text has read by then.

    The method reads no signal and keeps no token, so it takes no keep: `vtw@15`. The authors use layer 15 of 32 for
    LLaVA-1.5-7B and find the layer of a model by calibration; `foveate find-layer` does that. Text keeps its positions.
    Questions that need visual detail in late layers (reading, pointing) suffer first.

    >>> tokens = VisualTokens.of(torch.zeros(2, 4, 8), (2, 2))
    >>> VTW().plan(tokens).apply(tokens.features).shape, str(VTW())
    (torch.Size([2, 0, 8]), 'vtw')
    """

    place = "decoder"
    layers = (15,)
    paper = "arXiv 2405.05803"
    operations = SELECTED
    takes_keep = False

    def count(self, layout: Layout) -> int:
        """Return 0: no token is kept."""
        return 0

    def plan(self, tokens: VisualTokens) -> Plan:
        """Return an empty selection."""
        images, device = tokens.features.shape[0], tokens.features.device
        return Plan(slot=torch.empty(images, 0, dtype=torch.int64, device=device))
