"""Compress the images of a prompt before the language model: inputs in, shorter inputs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.devices import checked_device
from foveate.engine.encode import Encoded, encode_for
from foveate.engine.images import plan_images
from foveate.engine.inputs import check_mapping, check_prompt_inputs, check_visual_inputs
from foveate.engine.modalities import MODALITIES, brought, check_clips, containers, placeholders_of, visual_inputs
from foveate.engine.prompt import (
    PER_COLUMN,
    CompressedImage,
    CutPrompt,
    cut_prompt,
    refuse_missing_images,
    refuse_packed,
    texts_of,
)
from foveate.engine.sharding import refuse_sharded
from foveate.engine.timing import now
from foveate.errors import FoveateError, shown
from foveate.families import Family, family_of
from foveate.schedule import schedule
from foveate.spec import Spec, SpecLike, as_spec


class ShortInputs(Mapping[str, Any]):
    """Shorter inputs, for `model(**short)` and `model.generate(**short)`, as often as you like.

    A mapping, not a dict: `generate` changes the container of the image features in place, so each look at
    `mm_encoder_outputs` makes a fresh one. It holds no model, so it can be pickled and sent to another process.

    Attributes:
        images: what became of each image.
        milliseconds: time of the "encoder" (0 if it was run before) and of our "compressor".
    """

    def __init__(
        self,
        container: Callable[..., dict[str, Any]],
        tensors: dict[str, Any],
        images: Sequence[CompressedImage],
        milliseconds: dict[str, float],
    ) -> None:
        self._container = container
        self._tensors = tensors
        self.images = tuple(images)
        self.milliseconds = milliseconds

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs" and self.images:
            return self._container(self.images)
        return self._tensors[name]

    def to(self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None) -> ShortInputs:
        """Return the same on another device, and with features in another dtype.

        Args:
            device: where all tensors go; None leaves them where they are.
            dtype: of the features; ids, masks and positions keep theirs.

        Raises:
            FoveateError: there is no such device, or the dtype is no float.
        """

        if device is not None:
            device = checked_device(device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise FoveateError(f"dtype must be a float such as torch.bfloat16, not {shown(dtype)}")

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        images = [
            replace(image, features=moved(image.features), companions=tuple(map(moved, image.companions)))
            for image in self.images
        ]
        tensors = {name: moved(value) for name, value in self._tensors.items()}
        return ShortInputs(self._container, tensors, images, self.milliseconds)

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        if self.images:
            yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self._tensors) + bool(self.images)

    def __repr__(self) -> str:
        shapes = {name: tuple(value.shape) for name, value in self._tensors.items() if isinstance(value, Tensor)}
        counts = [f"{image.before} -> {image.after}" for image in self.images]
        return f"ShortInputs({shapes}, images={counts})"


def compress(
    model: nn.Module, inputs: Mapping[str, Any], spec: SpecLike, encoded: Encoded | None = None
) -> ShortInputs:
    """Return shorter inputs for a prompt with images: a pure function, for one turn.

    The result has an explicit attention mask and explicit position ids; pass it whole. With methods whose kept tokens
    keep their position ids, leave the cache on (`use_cache=True`, the default of `generate`): `generate` drops an
    all-ones mask, and position ids with gaps and neither mask nor cache are taken for packed sequences. Batches
    may be ragged, padded on either side, hold several images per row or none; rows of different length come out
    padded on the left. Labels are cut along.

    Args:
        model: a model of a supported family. It isn't changed.
        inputs: what its processor returned, with `input_ids` `(B, S)`.
        spec: the steps, all of them before the decoder: text such as "cluster:64", a `Spec`, a method object, or a
            list of these.
        encoded: the images, encoded by `encode` for this spec (and maybe others), so that the encoder doesn't run
            again. Without it, the images are taken from `inputs`.

    Returns:
        A mapping: input_ids `(B, M)` int64, attention_mask `(B, M)` int64, position_ids `(B, M)` (`(3, B, M)` with
        M-RoPE) int64, mm_encoder_outputs, and labels and token types if there were any.

    Raises:
        FoveateError: prompt and images don't fit together, a clip is among them and the family takes none, or a signal
            is asked for that the family lacks, or the model's weights are sharded.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    steps = schedule(as_spec(spec), family)
    if steps.layers:
        raise FoveateError(
            f"{steps.spec} acts inside the decoder, where shorter inputs can't reach; use foveate.apply, or a place "
            "up to @input"
        )
    check_mapping(inputs)
    check_clips(family, inputs)
    if inputs.get("mm_encoder_outputs"):
        raise FoveateError(
            "compress takes images as pixel_values, or encoded by foveate.encode; mm_encoder_outputs would pass at "
            "full length"
        )
    check_prompt_inputs(inputs)
    refuse_packed(inputs)
    if encoded is not None and not isinstance(encoded, Encoded):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FoveateError(f"encoded is what foveate.encode returned, not {shown(encoded)}")
    if encoded is None and not brought(family, inputs):
        refuse_missing_images(family, inputs["input_ids"])
        return ShortInputs(partial(containers, family.container), dict(inputs), (), {"encoder": 0.0, "compressor": 0.0})

    device = family.device
    milliseconds = {"encoder": 0.0}
    if encoded is None:
        check_visual_inputs(family, inputs)
        refuse_sharded(model, family.core)
        encoded = encode_for(family, inputs, [steps])
        milliseconds["encoder"] = encoded.milliseconds
    else:
        encoded.check(steps)
    steps.check_clips(encoded.layouts)
    began = now(device)
    ids: Tensor = inputs["input_ids"]
    texts = texts_of(family, ids, inputs.get("attention_mask"), encoded.layouts) if steps.reads_text else None
    images = plan_images(family, steps, encoded, texts)
    short = short_inputs(family, steps.spec, inputs, images, encoded.stacked)
    short.milliseconds = milliseconds | {"compressor": (now(device) - began) * 1e3}
    return short


def short_inputs(
    family: Family,
    spec: Spec,
    inputs: Mapping[str, Any],
    images: Sequence[CompressedImage],
    stacked: frozenset[str],
) -> ShortInputs:
    """Cut a prompt down to what is left of its images.

    Args:
        family: of the model.
        spec: named in errors.
        inputs: what the processor returned, with `input_ids` `(B, S)`.
        images: images and clips in prompt order.
        stacked: the modalities of which the model takes the features as one tensor.

    Raises:
        FoveateError: images and placeholders don't fit together, or `generate` of this family can't be told of the gaps
            between position ids.
    """
    ids: Tensor = inputs["input_ids"]
    cut = cut_prompt(family, ids, inputs.get("attention_mask"), inputs.get("position_ids"), images)
    if not family.takes_positions:
        _check_packed(family, spec, cut)
    tensors: dict[str, Any] = {
        "input_ids": cut.input_ids,
        "attention_mask": cut.attention_mask,
        "position_ids": cut.position_ids,
    }
    for name, value in inputs.items():
        if name in PER_COLUMN and value is not None:
            tensors[name] = cut.take(value, PER_COLUMN[name])
        elif name not in tensors and name not in visual_inputs(family):
            tensors[name] = value
    row_tokens = {
        name: placeholders_of(family, name, cut.input_ids).sum(dim=1).tolist() for name in MODALITIES if name in stacked
    }
    container = partial(containers, family.container, stacked=stacked, row_tokens=row_tokens)
    return ShortInputs(container, tensors, images, {})


def _check_packed(family: Family, spec: Spec, cut: CutPrompt) -> None:
    """Check that the position ids of a prompt are those that a model makes itself when it is given none.

    Raises:
        FoveateError: they have gaps.
    """
    both = cut.columns[:, 1:].minimum(cut.columns[:, :-1]) >= 0
    if bool(((cut.position_ids.diff(dim=-1) != 1) & both).any()):
        raise FoveateError(
            f"{spec} leaves gaps between position ids, and generate of {family.title} drops the position ids that it "
            "is given; use foveate.apply, or write positions=pack for every step"
        )
