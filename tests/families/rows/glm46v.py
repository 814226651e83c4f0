"""GLM-4.6V, tiny."""

from torch import nn

from rows.glm import GLM_TEXT, GLM_TOKENS, GLM_VISION, glm_row, spread


def make_glm46v() -> nn.Module:
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration

    vision, text = GLM_VISION | {"model_type": "glm4v_vision"}, GLM_TEXT | {"model_type": "glm4v_text"}
    return spread(Glm46VForConditionalGeneration(Glm46VConfig(vision_config=vision, text_config=text, **GLM_TOKENS)))


ROW = glm_row("glm46v", make_glm46v, offloads=False)
