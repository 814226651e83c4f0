"""GLM-4.5V: GLM-4.1V with a mixture of experts in its decoder.  GLM-V Team 2025, arXiv 2507.01006."""

from __future__ import annotations

from typing import ClassVar

from foveate.families.glm4v import GlmV
from foveate.families.registry import register_family


@register_family
class Glm4vMoe(GlmV):
    """GLM-4.5V: the encoder and the positions of GLM-4.1V, with a mixture of experts in the decoder."""

    name = "glm4v_moe"
    title = "GLM-4.5V"
    core_class = "Glm4vMoeModel"
    encoders = ("glm4v_moe_vision",)
    decoders = ("glm4v_moe_text",)
    checkpoints: ClassVar[tuple[str, ...]] = ("zai-org/GLM-4.5V", "zai-org/GLM-4.6V")
