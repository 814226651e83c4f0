"""What is remembered of images and prompts from one call to the next, while their features live."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.engine.prompt import CompressedImage
from foveate.plan import Plan
from foveate.tokens import Signal


@dataclass
class KnownImages:
    """What is remembered of images that were encoded together, for as long as their features live.

    Attributes:
        images: each of them, before the decoder.
        entry: the number of the first one in the report.
        signals: the encoder's answers for each of them, for steps inside the decoder.
        stacked: the modalities of which the model takes the features as one tensor.
        partners: what the other images of the prompt are, which were encoded apart: its clips.
        prompt: the last prompt that they came with and that left no cache, before anything was added to it.
        question: the prompt that `images` were planned for; None if the steps before the decoder read no text.
        cached: whether a call that they came with left a cache, so that a longer prompt is another question.
    """

    images: list[CompressedImage]
    entry: int
    signals: Mapping[Signal, Sequence[Tensor]]
    stacked: frozenset[str] = frozenset()
    partners: Sequence[Any] = ()
    prompt: UncachedPrompt | None = None
    question: Question | None = None
    cached: bool = False


@dataclass(frozen=True)
class Question:
    """A prompt whose plans hold as long as only something is added after it.

    Attributes:
        ids: `(B, S)` int64.
        mask: `(B, S)`, 0 at padding; None for no padding.
    """

    ids: Tensor
    mask: Tensor | None

    def begins(self, ids: Tensor, mask: Tensor | None) -> bool:
        """Return whether a call is this prompt with something added after it, or nothing."""
        width = self.ids.shape[1]
        if ids.shape[0] != self.ids.shape[0] or not torch.equal(ids[:, :width], self.ids):
            return False
        if mask is None and self.mask is None:
            return True
        masks = (torch.ones_like(self.ids) if each is None else each[:, :width] for each in (mask, self.mask))
        first, second = (each.bool() for each in masks)
        return torch.equal(first, second)


@dataclass(frozen=True)
class UncachedPrompt(Question):
    """A prompt without a cache, whose plans inside the decoder hold as long as only something is added after it.

    Attributes:
        last: how many of its last columns made predictions.
        plans: those that were made inside the decoder, in order.
    """

    last: int
    plans: list[Plan]


@dataclass(frozen=True)
class PreparedInputs:
    """What `generate` gave to its model's `prepare_inputs_for_generation`; a model may not pass all of it on.

    Attributes:
        cache: a weak reference to the cache.
        length: columns of the ids: those of the full conversation, or the new ones alone.
        taken: how many of the last columns are passed on; None for all.
        position_ids: of the full conversation or of what is passed on; None if there are none.
    """

    cache: weakref.ref[Any]
    length: int
    taken: int | None
    position_ids: Tensor | None
