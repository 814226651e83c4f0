"""Qwen2-VL: full attention and no [CLS], a 2 x 2 merger, M-RoPE.  Wang et al. 2024, arXiv 2409.12191."""

from __future__ import annotations

from foveate.families.config_fields import read_field, read_number
from foveate.families.qwen import QwenVL
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape


@register_family
class Qwen2VL(QwenVL):
    """Qwen2-VL: images of any size, four patches per visual token, full attention between the patches of an image."""

    name = "qwen2_vl"
    title = "Qwen2-VL"
    checkpoints = (
        "Qwen/Qwen2-VL-2B-Instruct",
        "Qwen/Qwen2-VL-7B-Instruct",
        "Qwen/Qwen2-VL-72B-Instruct",
        "Qwen/QVQ-72B-Preview",
    )
    core_class = "Qwen2VLModel"
    clip_places = ("pixels", "features", "input", "decoder")

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes; `hidden_size` of its configuration is the decoder's width."""
        vision = self.config.vision_config
        width = read_number(vision, "embed_dim")
        return self._shape(width, int(width * read_field(vision, "mlp_ratio")))
