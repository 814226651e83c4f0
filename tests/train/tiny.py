"""A LLaVA so small that a step takes milliseconds, as a directory with its processor."""

from pathlib import Path
from typing import Any

import torch
from recipes.reference.build import build_config, build_processor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

TOKENS = 36


def write_tiny(folder: Path, *, layers: int = 4) -> Path:
    """Make the directory: 6 x 6 visual tokens, four decoder layers."""
    torch.manual_seed(0)
    config = build_config(width=32, heads=2, encoder_layers=2, decoder_layers=layers, image=48)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor: Any = build_processor()
    side = {"height": 48, "width": 48}
    processor.image_processor = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
    return folder


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe on that model, as YAML gives it."""
    return {
        "model": str(folder),
        "data": {"scenes": 16, "turns": 2},
        "stages": [{"share": "1/2", "spec": "pool:0.25@2"}, {"share": "1/2", "spec": "dense"}],
        "steps": 6,
        "batch": 4,
        "per_device": 2,
        "lr": 1e-3,
        "log_every": 1,
        "save_every": 2,
        **changes,
    }
