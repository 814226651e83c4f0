"""What differs between the versions of transformers that the suite runs with.

A test of a feature that foveate refuses on some of them carries the mark of that feature: there the refusal is what it
expects. Everything else passes on every version.
"""

from typing import Any

import pytest
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaModel

from foveate.errors import FoveateError
from foveate.transformers_api import (
    cache_name,
    cache_of_output,
    checkpointing_repeats_hooks,
    chunks_lose_images,
)

__all__ = [
    "BEAMS_OF_SEVERAL_IMAGES",
    "CACHE",
    "CHECKPOINTING",
    "CHECKPOINTING_INSIDE",
    "CHUNKS",
    "beams_of",
    "cache_of_output",
    "set_checkpointing",
]

CACHE = cache_name(LlamaModel.forward)
"""What models of the installed version call their cache."""


def _refused(condition: bool, feature: str, message: str) -> pytest.MarkDecorator:
    expected = pytest.RaisesExc(FoveateError, match=message)
    return pytest.mark.xfail(condition, raises=expected, strict=True, reason=f"refused: {feature}")


CHECKPOINTING_INSIDE = _refused(
    checkpointing_repeats_hooks(),
    "gradient checkpointing with steps inside the encoder or the decoder",
    "can't be trained with gradient checkpointing in transformers 5",
)
BEAMS_OF_SEVERAL_IMAGES = _refused(
    False, "beams and several answers of prompts with several images, for GLM", "mixes up the images of a prompt"
)
"""Refused for rows that mix images up, whatever the version: conftest.py sees to that."""

CHUNKS = _refused(chunks_lose_images(), "chunked prefill", "chunked prefill of transformers .* loses images")


def beams_of(row: Any) -> tuple[dict[str, int], ...]:
    """Options of `generate` that follow beams, for prompts with several images; none where that is refused."""
    return () if row.mixes_images else ({"num_beams": 2},)


CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else ("gradient_checkpointing")
)
"""What gradient checkpointing is called, in methods of models and as a setting of the Trainer."""


def set_checkpointing(model: Any, on: bool) -> None:
    """Turn gradient checkpointing on or off."""
    if on:
        getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{CHECKPOINTING}_disable")()
