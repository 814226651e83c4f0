"""The thinker of Qwen3-Omni, tiny."""

from torch import nn

from rows.qwen import OMNI_AUDIO, QWEN3_TEXT, QWEN3_VISION, omni_row, omni_tokens


def make_qwen3_omni_moe_thinker() -> nn.Module:
    from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    audio = OMNI_AUDIO | {"n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 16}
    text = QWEN3_TEXT | {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3OmniMoeThinkerForConditionalGeneration(
        Qwen3OmniMoeThinkerConfig(audio_config=audio, vision_config=QWEN3_VISION, text_config=text, **omni_tokens("id"))
    )


ROW = omni_row("qwen3_omni_moe_thinker", make_qwen3_omni_moe_thinker, windows=False)
