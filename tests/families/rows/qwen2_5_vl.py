"""Qwen2.5-VL, tiny."""

from torch import nn

from rows.qwen import QWEN2_5_VISION, QWEN_TEXT, QWEN_TOKENS, qwen_clips, qwen_row


def make_qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=QWEN2_5_VISION, text_config=QWEN_TEXT, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen2_5_vl", make_qwen2_5_vl, windows=True, clips=qwen_clips(4))
