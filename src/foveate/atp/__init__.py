"""ATP: learned token budgets, per layer, image and question.  ATP-LLaVA, Ye et al. 2024, arXiv 2412.00447."""

from __future__ import annotations

from foveate.atp.adapter import ATP
from foveate.atp.budget import budget_loss, mean_share
from foveate.atp.soft_masks import soft_masks

__all__ = ["ATP", "budget_loss", "mean_share", "soft_masks"]
