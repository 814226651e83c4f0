"""Hooks on a model's own encoder: what it was asked, what its layers saw, and the steps that act before it and in it.

The encoder runs exactly once, through the model's own code. Signals are computed later from what was captured here:
the input of one layer's attention is enough to make its queries and keys again, so nothing ever asks the model for its
attention maps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.calls import on_call
from foveate.engine.encoder import EncoderStep, whole_plan
from foveate.errors import FoveateError
from foveate.families import Capture, Family
from foveate.methods import Method, PixelMethod
from foveate.schedule.resizing import nearest_below, resize_mode
from foveate.tokens import Signal

_ATTRIBUTE = "foveate_capture"


def capture_of(output: Any) -> Capture | None:
    """What was captured while the encoder made this output, or None if nobody watched."""
    return getattr(output, _ATTRIBUTE, None)


class EncoderWatch:
    """Watches the encoder of one model; `open` puts the hooks on, `close` takes them off.

    Args:
        family: the model's family.
        signals: the signals that will be asked for; their layers' inputs are kept.
        features: whether the vectors at `@features` are kept.
        pixels: the step at `@pixels`, if there is one.
        encoder: the step at `@encoder`, if there is one.
    """

    def __init__(
        self,
        family: Family,
        signals: Sequence[Signal] = (),
        features: bool = False,
        pixels: PixelMethod | None = None,
        encoder: Method | None = None,
    ) -> None:
        self.family = family
        self.layers = sorted({family.encoder_layer(signal.layer) for signal in signals if hasattr(signal, "layer")})  # pyright: ignore
        self.keep_features = features
        self.pixels = pixels
        self.mode = resize_mode(family, pixels)
        self._handles: list[Any] = []
        # One capture per thread: two threads may encode at once, and a backward pass that runs layers again
        # (gradient checkpointing) finds none and is left alone.
        self._local = threading.local()
        self._step = None if encoder is None else EncoderStep(family, encoder, self._local, self.layers)

    def open(self) -> None:
        """Put the hooks on."""
        family = self.family
        add = self._handles.append
        if not family.watches_tower:
            add(on_call(family.core, "get_image_features", after=self._note_result))
            return
        if family.encoder_arguments:
            add(on_call(family.core, "get_image_features", before=self._note_arguments))
        add(family.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
        for layer in self.layers:
            hook = _AttentionHook(self._local, layer)
            add(family.encoder_attentions[layer].register_forward_pre_hook(hook, with_kwargs=True))
        if self._step is not None:
            for handle in self._step.open():
                add(handle)
        if self.keep_features:
            add(family.feature_module.register_forward_pre_hook(self._before_projection))
        add(family.tower.register_forward_hook(self._after_tower))
        add(family.projected_module.register_forward_hook(self._after_projection))

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def saw_all(self, capture: Capture) -> bool:
        """Whether a capture holds all that this watch was to keep; one made by another watch may not."""
        if self._step is not None and not capture.inside and self._step.acts_on(capture):
            return False
        return set(self.layers) <= capture.attention.keys() and not (self.keep_features and capture.features is None)

    def _note_result(self, output: Any) -> None:
        """Of a family that knows nothing of what happens inside, what comes out is all that is captured."""
        if hasattr(output, "pooler_output"):
            setattr(output, _ATTRIBUTE, self.family.encoded(output))

    def _note_arguments(self, arguments: dict[str, Any]) -> None:
        self._local.arguments = {name: arguments.get(name) for name in self.family.encoder_arguments}

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments: dict[str, Any] | None = self._local.__dict__.pop("arguments", None)
        if self.family.encoder_arguments and arguments is None:
            # The tower was called by itself: nobody will ask for these features.
            self._local.capture = None
            return None
        capture = self.family.tower_call(args, {**kwargs, **(arguments or {})})
        self._local.capture = capture
        call = None
        if self.pixels is not None:
            sizes = [self.pixels.shrink(layout) for layout in capture.layouts]
            call = self.family.shrink(args, kwargs, capture, sizes, self.mode)
        if self._step is not None:
            self._step.start(capture)
        return call

    def _before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        capture: Capture | None = getattr(self._local, "capture", None)
        if capture is not None:
            capture.features = args[0]

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        capture: Capture | None = getattr(self._local, "capture", None)
        if self._step is not None:
            self._step.stop()
        if capture is not None:
            setattr(output, _ATTRIBUTE, capture)

    def _after_projection(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        capture: Capture | None = getattr(self._local, "capture", None)
        if capture is None:
            return None
        self._local.capture = None
        capture.projected = output if isinstance(output, Tensor) else output.pooler_output
        capture.companions = self.family.output_companions(output)
        if capture.seen == capture.layouts and not capture.inside:
            return None
        index = [nearest_below(seen, layout) for seen, layout in zip(capture.seen, capture.layouts, strict=True)]
        if (inside := whole_plan(capture)) is not None:
            came = self.family.projected(capture)[0].shape[0]
            if came != inside.slot.shape[1]:
                raise FoveateError(
                    f"{came} features came for an image of which {inside.slot.shape[1]} patches were to leave the "
                    "encoder; with a step at @encoder its layer can't be chosen in a call (vision_feature_layer)"
                )
            marks = torch.zeros(len(index), capture.seen[0].content, dtype=torch.int64, device=inside.slot.device)
            rows = (marks.scatter(1, inside.slot, 1).cumsum(dim=1) - 1).clamp(min=0)
            index = [row[places.to(row.device)] for row, places in zip(rows, index, strict=True)]
        return self.family.grow(output, capture, index)


class _AttentionHook:
    """Keeps the arguments of one attention layer."""

    def __init__(self, local: threading.local, layer: int) -> None:
        self.local = local
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        capture: Capture | None = getattr(self.local, "capture", None)
        if capture is not None:
            call = dict(kwargs)
            if args:
                call["hidden_states"] = args[0]
            call["hidden_states"] = call["hidden_states"].detach()
            capture.attention[self.layer] = call


@contextmanager
def watching(watch: EncoderWatch) -> Iterator[EncoderWatch]:
    """Hooks on inside the block, off behind it, whatever happens."""
    try:
        watch.open()
        yield watch
    finally:
        watch.close()
