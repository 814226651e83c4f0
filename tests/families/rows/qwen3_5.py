"""Qwen3.5, tiny."""

from torch import nn

from rows.qwen import LINEAR_ATTENTION, QWEN3_5_TEXT, QWEN3_5_VISION, QWEN_TOKENS, qwen3_clips, qwen_row


def make_qwen3_5() -> nn.Module:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(vision_config=QWEN3_5_VISION, text_config=QWEN3_5_TEXT, **QWEN_TOKENS)
    )


ROW = qwen_row("qwen3_5", make_qwen3_5, windows=False, **LINEAR_ATTENTION, clips=qwen3_clips())
