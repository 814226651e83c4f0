"""Qwen3-VL-MoE, tiny."""

from torch import nn

from rows.qwen import QWEN3_TEXT, QWEN3_VISION, QWEN_TOKENS, qwen3_clips, qwen_row


def make_qwen3_vl_moe() -> nn.Module:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = QWEN3_TEXT | {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(vision_config=QWEN3_VISION, text_config=text, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen3_vl_moe", make_qwen3_vl_moe, windows=False, clips=qwen3_clips())
