"""GLM-OCR, tiny."""

from torch import nn

from rows.glm import GLM_TEXT, GLM_TOKENS, GLM_VISION, glm_row, keys_behind_norm, spread


def make_glm_ocr() -> nn.Module:
    from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = GLM_TEXT | {"head_dim": 16, "rope_parameters": rope}
    return spread(
        GlmOcrForConditionalGeneration(GlmOcrConfig(vision_config=GLM_VISION, text_config=text, **GLM_TOKENS))
    )


ROW = glm_row("glm_ocr", make_glm_ocr, keys=keys_behind_norm, one_frame=False)
