"""Qwen3.5-MoE, tiny."""

from torch import nn

from rows.qwen import LINEAR_ATTENTION, QWEN3_5_TEXT, QWEN3_5_VISION, QWEN_TOKENS, qwen3_clips, qwen_row


def make_qwen3_5_moe() -> nn.Module:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = QWEN3_5_TEXT | {
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    return Qwen3_5MoeForConditionalGeneration(
        Qwen3_5MoeConfig(vision_config=QWEN3_5_VISION, text_config=text, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen3_5_moe", make_qwen3_5_moe, windows=False, **LINEAR_ATTENTION, clips=qwen3_clips())
