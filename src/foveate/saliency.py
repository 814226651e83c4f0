"""Show where a model looks: the attention that visual tokens get from text in each decoder layer, and from the encoder.

The maps are read by the engine's own signals, so no N x N map is made, and every attention implementation works that
methods with such signals work with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor, nn

from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.method import Method, Step
from foveate.plan import Plan
from foveate.schedule import schedule
from foveate.spec import Spec
from foveate.tokens import DecoderAttention, EncoderAttention, Layout, Signal, VisualTokens

__all__ = ["Saliency", "attention_maps", "overlap", "rank_correlation", "thirds", "watched"]

Rows = Literal["last", "text"]
Watched = tuple[tuple[Signal, ...], tuple[Any, ...]]
"""Signals, and the places at which they are read."""


@dataclass(frozen=True)
class Saliency:
    """The attention maps of one image.

    Attributes:
        layout: of the image's tokens.
        decoder: per decoder layer, the attention that each visual token gets from text: `(L, N)` float32. A row sums
            to the share of attention that goes to the image.
        encoder: the attention that each token gets in the encoder's last layer but one: `(N,)` float32; None if the
            encoder gives none.
    """

    layout: Layout
    decoder: Float[Tensor, "L N"]
    encoder: Float[Tensor, " N"] | None


@torch.inference_mode()
def attention_maps(model: nn.Module, inputs: Mapping[str, Any], rows: Rows = "last") -> tuple[Saliency, ...]:
    """Return the attention maps of each image of a prompt.

    Args:
        model: a model of a supported family.
        inputs: of one prompt, as its processor makes them.
        rows: whose attention: "last" is that of the prompt's last token, which begins the answer; "text" is the mean
            over all text tokens after the image.

    Raises:
        FoveateError: steps can't act in the model's decoder, or the prompt is a batch or has no image.

    >>> from foveate.prompts import question_inputs
    >>> import foveate
    >>> from PIL import Image
    >>> model, processor = foveate.reference()
    >>> inputs = question_inputs(processor, Image.new("RGB", (64, 64)), "is there a star ?")
    >>> (one,) = attention_maps(model, inputs)
    >>> one.decoder.shape, one.encoder.shape
    (torch.Size([12, 576]), torch.Size([576]))
    """
    ids = inputs["input_ids"]
    if ids.shape[0] != 1:
        raise FoveateError(
            f"attention maps are those of one prompt, and there are {ids.shape[0]}; give them one by one"
        )
    family = family_of(model)
    if not family.placeholders(ids).any():
        raise FoveateError("the prompt has no image, so there is nothing to look at; add one")
    layouts = family.layouts(dict(inputs))
    layers = len(family.decoder_layers)
    # A step inside the decoder is at layer 1 or later, and can read the layer before it, too; the last one reads both.
    here, previous = DecoderAttention(rows=rows), DecoderAttention(rows=rows, layer="previous")
    steps: list[Watched] = [((previous, here) if layers > 1 else (here,), (layers - 1,))]
    if layers > 2:
        steps.insert(0, ((previous,), tuple(range(1, layers - 1))))
    of_encoder: Watched = ((EncoderAttention(),), ("input",))
    if gives_encoder := _is_given(family, *of_encoder):
        steps.insert(0, of_encoder)
    found = watched(model, inputs, steps)
    encoder = [_one_row(each) for each in found.pop(0)] if gives_encoder else []
    maps = torch.stack([_one_row(each) for part in found for each in part]).unflatten(0, (layers, len(layouts)))
    return tuple(
        Saliency(layout, maps[:, number], encoder[number] if encoder else None) for number, layout in enumerate(layouts)
    )


def rank_correlation(one: Float[Tensor, "... N"], other: Float[Tensor, "... N"]) -> Float[np.ndarray, "..."]:
    """Return Spearman's rank correlation of maps over their last axis; equal values share their mean rank.

    >>> rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 30, 20])).item()
    0.5
    """
    a, b = (rankdata(np.asarray(each, dtype=np.float64), axis=-1) for each in (one, other))
    a, b = (each - each.mean(axis=-1, keepdims=True) for each in (a, b))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.where(scale == 0, 1, scale)


def overlap(one: Float[Tensor, "... N"], other: Float[Tensor, "... N"], count: int) -> Float[Tensor, "..."]:
    """Return the share of the `count` highest places of a map that are among those of another.

    By chance it is count / N.

    >>> overlap(torch.tensor([4.0, 3, 2, 1]), torch.tensor([1.0, 9, 8, 2]), 2).item()
    0.5
    """
    marks = [
        torch.zeros_like(each, dtype=torch.bool).scatter_(-1, each.topk(count).indices, True) for each in (one, other)
    ]
    return (marks[0] & marks[1]).float().sum(dim=-1) / count


def thirds(found: Saliency) -> list[list[float]]:
    """Return, per decoder layer, the shares of the image's attention in the upper, middle and lower third of its rows.

    Of an image of several grids, each is cut into thirds. Of one with fewer than three rows, the list is empty.
    """
    rows: list[Tensor] = []
    for segment in found.layout.segments:
        if segment.h < 3:
            return []
        places = torch.arange(segment.h).mul(3).div(segment.h, rounding_mode="floor")
        rows.append(places.repeat_interleave(segment.w).repeat(segment.t))
    third = torch.cat(rows)
    sums = torch.stack([found.decoder[:, third == each].sum(dim=1) for each in range(3)], dim=1)
    return (sums / sums.sum(dim=1, keepdim=True).clamp(min=1e-30)).tolist()


def _is_given(family: Family, signals: tuple[Signal, ...], places: tuple[Any, ...]) -> bool:
    """Return whether a family gives signals at some places."""
    try:
        schedule(Spec((_watching(signals, places, []),)), family)
    except FoveateError:
        return False
    return True


def watched(model: nn.Module, inputs: Mapping[str, Any], steps: Sequence[Watched]) -> list[list[Tensor]]:
    """Run a model once, keep every token, and return what signals say at some places.

    Args:
        model: a model of a supported family.
        inputs: what it is called with.
        steps: signals, each time with the places at which they are read, in the order in which steps may stand in a
            spec; inside the decoder, each place stands in one step.

    Returns:
        Per step, its signals at each of its places, of each image: in the order of places, signals, images.

    Raises:
        FoveateError: the family doesn't give a signal at a place.
    """
    found: list[list[Tensor]] = [[] for _ in steps]
    spec = Spec(tuple(_watching(*step, seen) for step, seen in zip(steps, found, strict=True)))
    with apply(model, spec):
        model(**inputs, logits_to_keep=1)
    return found


def _watching(signals: tuple[Signal, ...], places: tuple[Any, ...], found: list[Tensor]) -> Step:
    """Return a step that keeps every token, and takes down what signals say."""
    in_decoder = isinstance(signals[0], DecoderAttention)

    @dataclass(frozen=True)
    class Watch(Method):
        """Keep every token."""

        name = "watch"
        place = "decoder" if in_decoder else "input"
        query_aware = in_decoder

        @property
        def needs(self) -> tuple[Signal, ...]:
            return signals

        def plan(self, tokens: VisualTokens) -> Plan:
            for signal in signals:
                found.extend(tokens.signals[signal].float().clone().unbind(0))
            images, count = tokens.features.shape[:2]
            return Plan(torch.arange(count, device=tokens.features.device).expand(images, -1))

    return Step(Watch(), places)


def _one_row(attention: Tensor) -> Float[Tensor, " N"]:
    """Return attention as one row on the CPU: the mean over the text tokens that come after the image."""
    if attention.dim() == 1:
        return attention.cpu()
    behind = attention.sum(dim=-1) > 0
    return (attention.sum(dim=0) / behind.sum().clamp(min=1)).cpu()
