"""Qwen3-VL, tiny."""

from torch import nn

from rows.qwen import QWEN3_TEXT, QWEN3_VISION, QWEN_TOKENS, qwen3_clips, qwen_row


def make_qwen3_vl() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(vision_config=QWEN3_VISION, text_config=QWEN3_TEXT, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen3_vl", make_qwen3_vl, windows=False, clips=qwen3_clips())
