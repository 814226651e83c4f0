"""The thinker of Qwen3-Omni: Qwen3-VL MoE that also hears.  Xu et al. 2025, arXiv 2509.17765."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.families.qwen3_vl import Qwen3VL
from foveate.families.qwen_omni import OmniThinker
from foveate.families.registry import register_family

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Qwen3OmniMoeThinker(OmniThinker, Qwen3VL):
    """The thinker of Qwen3-Omni: images of any size, four patches per visual token, DeepStack, a mixture of experts."""

    name = "qwen3_omni_moe_thinker"
    title = "Qwen3-Omni"
    inside = ("qwen3_omni_moe",)
    core_class = "Qwen3OmniMoeThinkerModel"
    checkpoints = ("Qwen/Qwen3-Omni-30B-A3B-Instruct", "Qwen/Qwen3-Omni-30B-A3B-Thinking")
    pixel_limits = (3136, 12_845_056)

    @property
    def feature_module(self) -> nn.Module:
        """The first layer of the merger's MLP, which reads four normalised patches side by side."""
        merger: Any = self.core.visual.merger  # pyright: ignore
        return merger.mlp[0]

    def project(self, features: Tensor) -> Tensor:
        """Apply the merger without its norm."""
        merger: Any = self.core.visual.merger  # pyright: ignore
        for layer in merger.mlp:
            features = layer(features)
        return features
