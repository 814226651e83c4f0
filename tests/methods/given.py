"""Visual tokens by hand that answer every request a method may make."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    EncoderAttention,
    EncoderKeys,
    Layout,
    Origin,
    Pixels,
    RotaryLogits,
    Segment,
    Signals,
    Text,
    VisualTokens,
    token_axis,
)

WORDS, BEFORE, HEADS = 5, 1, 3
"""Text tokens of each prompt, how many of them stand before the image, and heads."""


def tokens(
    grid: tuple[int, int] | Layout,
    kind: str = "random",
    images: int = 3,
    dtype: torch.dtype = torch.float32,
    width: int = 8,
    order: Sequence[int] | None = None,
) -> VisualTokens:
    """Three images of one grid, the same each time.

    Args:
        grid: rows and columns, or a layout.
        kind: "random"; "ties": few different scores, and each token there several times; "equal": nothing differs;
            "loud": features whose squares don't fit into half precision.
        images: how many.
        dtype: of everything.
        width: of the features.
        order: the images in another order.
    """
    layout = grid if isinstance(grid, Layout) else Layout((Segment(1, *grid),))
    count = layout.content
    generator = torch.Generator().manual_seed(count)

    def scores(*shape: int) -> Tensor:
        """Between 0 and 1."""
        values = torch.rand(images, *shape, generator=generator)
        return {"ties": (values * 3).round() / 3, "equal": torch.zeros_like(values)}.get(kind, values)

    def vectors(length: int) -> Tensor:
        values = torch.randn(images, length, width, generator=generator)
        if kind == "ties":
            values = values[:, torch.arange(length) % max(1, length // 3)]
        if kind == "loud":
            values = values * (2e4 / values.abs().max())
        return torch.ones_like(values) if kind == "equal" else values

    features = vectors(count)
    rows = scores(HEADS, WORDS, count) / count
    rows[:, :, :BEFORE] = 0
    answers: dict[Any, Tensor] = {}
    for layer in ("here", "previous"):
        for heads, values in (("each", rows), ("mean", rows.mean(dim=1))):
            answers[DecoderAttention("text", layer, heads)] = values
            answers[DecoderAttention("last", layer, heads)] = values[..., -1, :]
        answers[DecoderKeys("visual", layer)] = vectors(count)
        answers[DecoderKeys("text", layer)] = vectors(WORDS)
        answers[DecoderLogits(layer)] = scores(count) * 8 - 4
    answers[DecoderInput("visual")] = vectors(count)
    answers[DecoderInput("text")] = vectors(WORDS)
    answers[RotaryLogits()] = 1 + scores(WORDS, count)
    answers[Text()] = vectors(WORDS)
    answers[Behind()] = (torch.arange(WORDS) >= BEFORE).expand(images, -1)
    of_kind: dict[type, Tensor] = {EncoderAttention: scores(count), EncoderKeys: vectors(count), Pixels: vectors(count)}

    def at(values: Tensor) -> Tensor:
        values = values[list(range(images) if order is None else order)]
        return values.to(dtype) if values.is_floating_point() else values

    signals = Signals({s: at(v) for s, v in answers.items()}, {k: at(v) for k, v in of_kind.items()})
    return VisualTokens(at(features), layout, signals)


def alone(whole: VisualTokens, segment: Segment, index: Tensor) -> VisualTokens:
    """One tile or frame as an image of its own, cut out by hand."""
    count = whole.layout.content

    def of(request: Any, answer: Tensor) -> Tensor:
        axis = token_axis(request if isinstance(request, type) else type(request))
        if axis is None or getattr(request, "of", "visual") == "text" or isinstance(request, DecoderInput):
            return answer
        assert answer.shape[axis] == count
        return answer.index_select(axis, index)

    signals = Signals(
        {request: of(request, answer) for request, answer in whole.signals._answers.items()},
        {kind: of(kind, answer) for kind, answer in whole.signals._of_kind.items()},
    )
    return VisualTokens(
        whole.features[:, index], Layout((segment,)), signals, Origin(whole.layout, index.expand(3, -1))
    )
