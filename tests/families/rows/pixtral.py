"""Pixtral, tiny: LLaVA with Pixtral's encoder."""

from torch import nn

from rows.pixtral_encoder import MISTRAL_TEXT, PIXTRAL_VISION, pixtral_row


def make_pixtral() -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=PixtralVisionConfig(**PIXTRAL_VISION),
            text_config=MistralConfig(**MISTRAL_TEXT),
            image_token_id=5,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )


ROW = pixtral_row("pixtral", make_pixtral, merge=1)
