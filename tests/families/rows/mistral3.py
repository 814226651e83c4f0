"""Mistral 3, tiny."""

from torch import nn

from rows.pixtral_encoder import MISTRAL_TEXT, PIXTRAL_VISION, pixtral_row


def make_mistral3() -> nn.Module:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=PixtralVisionConfig(**PIXTRAL_VISION),
            text_config=MistralConfig(**MISTRAL_TEXT),
            image_token_index=5,
            tie_word_embeddings=False,
        )
    )


ROW = pixtral_row("mistral3", make_mistral3, merge=2)
