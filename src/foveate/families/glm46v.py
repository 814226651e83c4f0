"""GLM-4.6V: GLM-4.1V for longer prompts.  GLM-V Team 2025, arXiv 2507.01006."""

from __future__ import annotations

from foveate.families.glm4v import GlmV
from foveate.families.registry import register_family


@register_family
class Glm46V(GlmV):
    """GLM-4.6V: the encoder and the positions of GLM-4.1V, with a decoder of GLM-4.1V or of GLM-4.5V.

    The released models GLM-4.6V and GLM-4.6V-Flash are of the types of GLM-4.5V and GLM-4.1V, whose families take them.
    """

    name = "glm46v"
    title = "GLM-4.6V"
    core_class = "Glm46VModel"
    encoders = ("glm4v_vision", "glm4v_moe_vision")
    decoders = ("glm4v_text", "glm4v_moe_text")
