"""Qwen2.5-VL, tiny."""

from torch import nn

from rows.qwen import QWEN_TEXT, QWEN_TOKENS, qwen_row


def make_qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [2],
        "patch_size": 14,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen2_5_vl", make_qwen2_5_vl, windows=True)
