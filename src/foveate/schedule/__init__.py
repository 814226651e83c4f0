"""Which method acts where in a model, and how many visual tokens are left, computed before anything runs."""

from __future__ import annotations

from foveate.schedule.count import (
    ImageTokens,
    StepTokens,
    count_tokens,
    tokens_after,
    tokens_between,
    tokens_entering,
    tokens_per_layer,
)
from foveate.schedule.depth import scaled_layer, scaled_layers
from foveate.schedule.expected import ExpectedTokens
from foveate.schedule.steps import DecoderSteps, LayerStep, Schedule, SpecLike, check_clip_places, last_layer, schedule

__all__ = [
    "DecoderSteps",
    "ExpectedTokens",
    "ImageTokens",
    "LayerStep",
    "Schedule",
    "SpecLike",
    "StepTokens",
    "check_clip_places",
    "count_tokens",
    "last_layer",
    "scaled_layer",
    "scaled_layers",
    "schedule",
    "tokens_after",
    "tokens_between",
    "tokens_entering",
    "tokens_per_layer",
]
