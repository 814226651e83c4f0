"""GLM-4.1V, tiny."""

from torch import nn

from rows.glm import GLM_TEXT, GLM_TOKENS, GLM_VISION, glm_row, spread


def make_glm4v() -> nn.Module:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return spread(
        Glm4vForConditionalGeneration(Glm4vConfig(vision_config=GLM_VISION, text_config=GLM_TEXT, **GLM_TOKENS))
    )


ROW = glm_row("glm4v", make_glm4v, offloads=False)
