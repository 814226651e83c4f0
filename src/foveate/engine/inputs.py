"""Check what callers pass as a processor's output: types and shapes, and values on the CPU alone, so that no
accelerator is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from foveate.arguments import check_kind
from foveate.devices import on_cpu
from foveate.engine.modalities import CLIP, brought, check_clips, pixels_of
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
        check_kind("a name among the inputs", name, str, "a text such as input_ids")
        if isinstance(value, Tensor) and value.is_meta:
            raise FoveateError(f"{name} is on the meta device, where tensors have no values; pass it on a real device")


def checked_prompts(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Go through outputs of a processor, and check each before it is used.

    Raises:
        FoveateError: they can't be gone through, or one is something else.
    """
    if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise FoveateError(f"batches must be outputs of the model's processor, one after another, not {shown(batches)}")
    for batch in batches:
        check_mapping(batch)
        check_prompt_inputs(batch)
        yield batch


def check_prompt_inputs(inputs: Mapping[str, Any]) -> None:
    """Check the inputs that have one value per column: ids, mask, position ids, labels and token types.

    Raises:
        FoveateError: there are no ids, or one is no tensor, or of another type or shape; the text says what it should
            be.
    """
    ids = inputs.get("input_ids")
    if ids is None:
        raise FoveateError("a prompt needs input_ids; inputs_embeds alone don't show where the images are")
    check_tensor("input_ids", ids)
    if ids.ndim != 2 or not ids.numel() or ids.dtype not in _INTEGERS:
        raise FoveateError(
            f"input_ids are {_described(ids)}; they must be whole numbers (prompts, tokens), with at least one of each"
        )
    for name in ("attention_mask", *PER_COLUMN):
        value = inputs.get(name)
        if value is None:
            continue
        check_tensor(name, value)
        if value.shape != ids.shape:
            raise FoveateError(
                f"{name} is {_described(value)} and input_ids {_described(ids)}; both need one value per token of each "
                "prompt"
            )
    mask = inputs.get("attention_mask")
    if mask is not None:
        check_mask(mask)
    positions = inputs.get("position_ids")
    if positions is not None:
        check_tensor("position_ids", positions)
        if positions.ndim not in (2, 3) or positions.shape[-1] != ids.shape[1] or not _is_whole(positions):
            raise FoveateError(
                f"position_ids are {_described(positions)} and input_ids {_described(ids)}; they need one whole number "
                "per token of each prompt"
            )


def check_tensor(name: str, value: object) -> None:
    """Check that an input is a tensor.

    Raises:
        FoveateError: it is something else.
    """
    if not isinstance(value, Tensor):
        raise FoveateError(f'{name} is {shown(value)}, and must be a tensor: pass return_tensors="pt" to the processor')


def check_mask(mask: Shaped[Tensor, "B S"]) -> None:
    """Check that an attention mask holds 1 for tokens and 0 for padding, as far as it is on the CPU.

    Raises:
        FoveateError: it holds something else.
    """
    if on_cpu(mask) and not bool((mask == mask.bool()).all()):
        raise FoveateError(
            "attention_mask must hold 1 for each token and 0 for padding, and some of its values are others; pass the "
            "mask that the processor returned"
        )


def check_visual_inputs(family: Family, inputs: Mapping[str, Any]) -> None:
    """Check the inputs that describe images and clips, as far as there are any.

    Raises:
        FoveateError: pixels are no floats, or there are none; or there are clips, which the family doesn't take.
    """
    check_clips(family, inputs)
    if not family.watches_tower:
        # What the model takes as pixels is unknown.
        return
    for modality in brought(family, inputs):
        first, named = pixels_of(family, modality), family.video_inputs if modality == CLIP else family.pixel_inputs
        pixels = inputs[first]
        check_tensor(first, pixels)
        if not pixels.is_floating_point() or not pixels.numel():
            noun = "clip" if modality == CLIP else "image"
            raise FoveateError(
                f"{first} are {_described(pixels)}; they must be floats of at least one {noun}, as the processor "
                "returns them"
            )
        for name in named:
            value = inputs.get(name)
            # The seconds between frames may be a plain list.
            takes = Tensor | list if modality == CLIP else Tensor
            if name != first and value is not None and not isinstance(value, takes):
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
        check_tensor("inputs_embeds", embeddings)
        if embeddings.ndim != 3 or not embeddings.is_floating_point():
            raise FoveateError(
                f"inputs_embeds are {_described(embeddings)}; they must be floats (prompts, tokens, width)"
            )
    mask = arguments.get("attention_mask")
    if ids is None or mask is None:
        return
    check_tensor("attention_mask", mask)
    # With a cache, the mask covers what it holds, too.
    if mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
        raise FoveateError(
            f"attention_mask is {_described(mask)} and input_ids {_described(ids)}; both need one value per token of "
            "each prompt"
        )


def check_ids(ids: object, name: str = "input_ids") -> None:
    """Check the token ids of a call, if it has any.

    Args:
        ids: what the call has.
        name: what the call names them.

    Raises:
        FoveateError: they are no whole numbers `(prompts, tokens)`.
    """
    if ids is None:
        return
    check_tensor(name, ids)
    assert isinstance(ids, Tensor)
    if ids.ndim != 2 or ids.dtype not in _INTEGERS:
        raise FoveateError(f"{name} are {_described(ids)}; they must be whole numbers (prompts, tokens)")


def check_positions(positions: object) -> None:
    """Check the position ids of a call, if it has any.

    Raises:
        FoveateError: they are no whole numbers `(prompts, tokens)` or `(axes, prompts, tokens)`.
    """
    if positions is None:
        return
    check_tensor("position_ids", positions)
    assert isinstance(positions, Tensor)
    if positions.ndim not in (2, 3) or not _is_whole(positions):
        raise FoveateError(
            f"position_ids are {_described(positions)}; they must be whole numbers (prompts, tokens) or (axes, "
            "prompts, tokens)"
        )


def _is_whole(positions: Tensor) -> bool:
    """Return whether position ids are whole numbers, which some models have as floating point."""
    return positions.dtype in _INTEGERS or (
        positions.is_floating_point() and bool((positions == positions.round()).all())
    )


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
