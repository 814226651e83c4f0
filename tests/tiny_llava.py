"""A tiny random LLaVA with the embedded model's own processor: 16 visual tokens per image, answers of one word."""

from typing import Any

import torch


def tiny_model(seed: int = 0, layers: int = 2) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=192,
                patch_size=48,
            ),
            text_config=LlamaConfig(
                vocab_size=300,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
            ),
            image_token_id=4,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Small random decoders hardly look at anything: larger weights make their attention matter.
            if weight.ndim >= 2 and "embed" not in name:
                weight.mul_(3.0)
    model.generation_config.eos_token_id = list(range(250, 300))
    model.generation_config.pad_token_id = 0
    return model.eval()


def tiny_processor() -> Any:
    from transformers import AutoProcessor

    from foveate.embedded import PATH

    made = AutoProcessor.from_pretrained(PATH, local_files_only=True)
    made.patch_size = 48
    return made
