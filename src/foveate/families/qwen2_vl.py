"""Qwen2-VL: full attention and no [CLS], a 2 x 2 merger, M-RoPE.  Wang et al. 2024, arXiv 2409.12191."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.families.qwen import QwenVL
from foveate.families.registry import register_family


@register_family
class Qwen2VL(QwenVL):
    """Qwen2-VL: images of any size, four patches per visual token, every patch of an image sees every other one."""

    name = "qwen2_vl"
    title = "Qwen2-VL"
    core_class = "Qwen2VLModel"

    @property
    def feature_module(self) -> nn.Module:
        """The merger's MLP: it reads four normalised patches side by side."""
        return self.core.visual.merger.mlp  # pyright: ignore

    def project(self, features: Tensor) -> Tensor:
        """The merger's MLP."""
        return self.core.visual.merger.mlp(features)  # pyright: ignore
