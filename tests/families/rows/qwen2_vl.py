"""Qwen2-VL, tiny."""

from torch import nn

from rows.qwen import QWEN_TEXT, QWEN_TOKENS, qwen_clips, qwen_row


def make_qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN_TOKENS))


ROW = qwen_row("qwen2_vl", make_qwen2_vl, windows=False, clips=qwen_clips())
