"""The thinker of Qwen2.5-Omni, tiny."""

from torch import nn

from rows.qwen import OMNI_AUDIO, QWEN2_5_VISION, QWEN_TEXT, omni_row, omni_tokens


def make_qwen2_5_omni_thinker() -> nn.Module:
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    audio = OMNI_AUDIO | {"n_window": 10}
    return Qwen2_5OmniThinkerForConditionalGeneration(
        Qwen2_5OmniThinkerConfig(
            audio_config=audio, vision_config=QWEN2_5_VISION, text_config=QWEN_TEXT, **omni_tokens("index")
        )
    )


ROW = omni_row("qwen2_5_omni_thinker", make_qwen2_5_omni_thinker, windows=True)
