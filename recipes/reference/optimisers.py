"""The optimiser and learning rates of the reference model: Muon for matrices inside layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LearningRates:
    """Learning rates by step: a linear warm-up, a plateau, and a linear fall over the last ``fall`` of the steps.

    >>> s = LearningRates(steps=100, lr=1.0, warmup=10, fall=0.5)
    >>> [round(s.at(step), 2) for step in (0, 9, 40, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """

    steps: int
    lr: float
    warmup: int = 50
    fall: float = 0.3

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        start = self.steps * (1 - self.fall)
        falling = 1.0 if step < start else (self.steps - step) / (self.steps * self.fall)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * falling


class MuonAndAdamW(torch.optim.Optimizer):
    """Both at once, with one state and one list of groups, as trainers want it.

    Args:
        model: whose weights that require gradients are trained; matrices inside `layers` by Muon.
        lr: the same scale for both; what AdamW has takes 0.4 of it, since patch and token embeddings jitter at Muon's.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        inner = [p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and "layers." in name]
        known = {id(p) for p in inner}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self._parts: list[torch.optim.Optimizer] = []
        if inner:
            muon = torch.optim.Muon(inner, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if rest:
            adam = torch.optim.AdamW(rest, lr=0.4 * lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
            self._parts.append(adam)
        # The groups are the parts' own: who sets a learning rate here sets it there.
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        self.state.clear()
        for part in self._parts:
            self.state.update(part.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each its own part of the state."""
        super().load_state_dict(state_dict)
        at = 0
        for part in self._parts:
            part.param_groups = self.param_groups[at : at + len(part.param_groups)]
            at += len(part.param_groups)
            own = {p for group in part.param_groups for p in group["params"]}
            part.state.clear()
            part.state.update({p: value for p, value in self.state.items() if p in own})
