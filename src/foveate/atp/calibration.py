"""Measure how many tokens an adapter's thresholds leave for each shift of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from foveate.arguments import listed
from foveate.engine import apply, encode, encoder_outputs
from foveate.engine.inputs import checked_prompts
from foveate.errors import FoveateError
from foveate.families import vlm_of
from foveate.methods.arithmetic.thresholds import LearnedThresholds
from foveate.methods.atp import ATPLayer
from foveate.numbers import check_real
from foveate.spec import Spec, Step

SHIFTS: Final = (-3.0, -1.5, -0.8, -0.4, -0.2, 0.0, 0.2, 0.4, 0.8, 1.5, 3.0)
"""The shifts that are measured by default, in logits."""


@torch.no_grad()
def measured_curve(
    model: nn.Module, adapter: LearnedThresholds, batches: Iterable[Mapping[str, Any]], shifts: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Return pairs of shift and mean share of tokens per layer, shifts ascending; shares never grow.

    Args:
        model: the base model.
        adapter: made for it.
        batches: outputs of the model's processor for prompts with images.
        shifts: added to the logits of both thresholds.

    Raises:
        FoveateError: no batch has an image, a batch is no output of a processor, a shift is no number, or the adapter
            was made for another model.
    """
    model = vlm_of(model)
    ordered = sorted({check_real("a shift", shift) for shift in listed("shifts", shifts, "numbers")})
    if not ordered:
        raise FoveateError("there is no shift to measure; name some, or leave shifts out")
    shares: dict[float, list[float]] = {shift: [] for shift in ordered}
    for batch in checked_prompts(batches):
        if batch.get("pixel_values") is None:
            continue
        encoded = encode(model, batch)
        inputs = {name: value for name, value in batch.items() if name != "pixel_values"}
        for shift in ordered:
            steps = tuple(Step(ATPLayer.of(adapter, number, shift)) for number in range(len(adapter.layers)))
            with apply(model, Spec(steps)) as run:
                outputs = encoder_outputs(model, encoded)
                model(**{**inputs, "use_cache": False, "mm_encoder_outputs": outputs})
            shares[shift] += [image.mean_over_layers / image.before for image in run.report().images]
    curve: list[tuple[float, float]] = []
    for shift in ordered:
        if not shares[shift]:
            raise FoveateError("no image came to calibrate on; pass prompts with images")
        share = sum(shares[shift]) / len(shares[shift])
        curve.append((shift, min(share, curve[-1][1] if curve else 1.0)))
    return tuple(curve)
