"""GLM-4.5V, tiny."""

from torch import nn

from rows.glm import GLM_TEXT, GLM_TOKENS, GLM_VISION, glm_row, spread


def make_glm4v_moe() -> nn.Module:
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    text = GLM_TEXT | {
        "head_dim": 16,
        "moe_intermediate_size": 48,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    return spread(
        Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(vision_config=GLM_VISION, text_config=text, **GLM_TOKENS))
    )


ROW = glm_row("glm4v_moe", make_glm4v_moe, offloads=False)
