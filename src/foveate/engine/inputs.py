"""Check what callers pass as a processor's output: types and shapes, and no value, so that no device is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.engine.prompt import PER_COLUMN
from foveate.errors import FoveateError, shown
from foveate.families import Family

_INTEGERS = (torch.int64, torch.int32)


def check_mapping(inputs: object) -> None:
    """Check that inputs are what a processor returns.

    Raises:
        FoveateError: they are no mapping of names to tensors, or a tensor has no values.
    """
    if not isinstance(inputs, Mapping):
        raise FoveateError(
            "inputs are what the processor returned, a mapping of names such as input_ids to tensors, not "
            f"{shown(inputs)}"
        )
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise FoveateError(f"{name} is on the meta device, where tensors have no values; pass it on a real device")


def check_prompt_inputs(inputs: Mapping[str, Any]) -> None:
    """Check the inputs that have one value per column: ids, mask, position ids, labels and token types.

    Raises:
        FoveateError: one is no tensor, or of another type or shape; the text says what it should be.
    """
    ids = inputs["input_ids"]
    _check_tensor("input_ids", ids)
    if ids.ndim != 2 or not ids.numel() or ids.dtype not in _INTEGERS:
        raise FoveateError(
            f"input_ids are {_described(ids)}; they must be whole numbers (prompts, tokens), with at least one of each"
        )
    for name in ("attention_mask", *PER_COLUMN):
        value = inputs.get(name)
        if value is None:
            continue
        _check_tensor(name, value)
        if value.shape != ids.shape:
            raise FoveateError(
                f"{name} is {_described(value)} and input_ids {_described(ids)}; both need one value per token of each "
                "prompt"
            )
    positions = inputs.get("position_ids")
    if positions is not None:
        _check_tensor("position_ids", positions)
        if positions.ndim not in (2, 3) or positions.shape[-1] != ids.shape[1] or positions.dtype not in _INTEGERS:
            raise FoveateError(
                f"position_ids are {_described(positions)} and input_ids {_described(ids)}; they need one whole number "
                "per token of each prompt"
            )


def check_image_inputs(family: Family, inputs: Mapping[str, Any]) -> None:
    """Check the inputs that describe images.

    Raises:
        FoveateError: pixels are no floats, or there are none.
    """
    if not family.watches_tower:
        # What the model takes as pixels is unknown.
        return
    pixels = inputs["pixel_values"]
    _check_tensor("pixel_values", pixels)
    if not pixels.is_floating_point() or not pixels.numel():
        raise FoveateError(
            f"pixel_values are {_described(pixels)}; they must be floats of at least one image, as the processor "
            "returns them"
        )
    for name in family.pixel_inputs:
        value = inputs.get(name)
        if name != "pixel_values" and value is not None and not isinstance(value, Tensor):
            raise FoveateError(f"{name} is {shown(value)}; the processor returns a tensor")


def check_generation(arguments: Mapping[str, Any]) -> None:
    """Check what a caller gives to `generate`, which reads shapes before any model is called.

    Args:
        arguments: of `generate`, by name.

    Raises:
        FoveateError: one is no tensor, or of another type or shape.
    """
    ids = arguments.get("input_ids")
    ids = arguments.get("inputs") if ids is None else ids
    check_ids(ids)
    embeddings = arguments.get("inputs_embeds")
    if embeddings is not None:
        _check_tensor("inputs_embeds", embeddings)
        if embeddings.ndim != 3 or not embeddings.is_floating_point():
            raise FoveateError(
                f"inputs_embeds are {_described(embeddings)}; they must be floats (prompts, tokens, width)"
            )
    mask = arguments.get("attention_mask")
    if ids is None or mask is None:
        return
    _check_tensor("attention_mask", mask)
    # With a cache, the mask covers what it holds, too.
    if mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
        raise FoveateError(
            f"attention_mask is {_described(mask)} and input_ids {_described(ids)}; both need one value per token of "
            "each prompt"
        )


def check_ids(ids: object) -> None:
    """Check the token ids of a call, if it has any.

    Raises:
        FoveateError: they are no whole numbers `(prompts, tokens)`.
    """
    if ids is None:
        return
    _check_tensor("input_ids", ids)
    assert isinstance(ids, Tensor)
    if ids.ndim != 2 or ids.dtype not in _INTEGERS:
        raise FoveateError(f"input_ids are {_described(ids)}; they must be whole numbers (prompts, tokens)")


def check_positions(positions: object) -> None:
    """Check the position ids of a call, if it has any.

    Raises:
        FoveateError: they are no whole numbers `(prompts, tokens)` or `(axes, prompts, tokens)`.
    """
    if positions is None:
        return
    _check_tensor("position_ids", positions)
    assert isinstance(positions, Tensor)
    if positions.ndim not in (2, 3) or positions.dtype not in _INTEGERS:
        raise FoveateError(
            f"position_ids are {_described(positions)}; they must be whole numbers (prompts, tokens) or (axes, "
            "prompts, tokens)"
        )


def _check_tensor(name: str, value: object) -> None:
    """Check that an input is a tensor.

    Raises:
        FoveateError: it is something else.
    """
    if not isinstance(value, Tensor):
        raise FoveateError(f'{name} is {shown(value)}, and must be a tensor: pass return_tensors="pt" to the processor')


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
