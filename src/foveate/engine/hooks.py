"""Every hook that foveate puts on a model: on the encoder, on the core, on the decoder's layers, and on a method.

Hooks only carry values between the model and the code that decides. Each kind keeps the running call of a thread in a
thread-local, so two threads never mix; a backward pass that runs layers again (gradient checkpointing) finds no running
call, or runs inside the layer, and changes nothing.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.engine.containers import images_of, mark_images
from foveate.engine.decoder import DecoderPass
from foveate.engine.encoder import EncoderPass, full_index
from foveate.engine.sharding import inside_wrapper
from foveate.errors import FoveateError
from foveate.families import Capture, Family
from foveate.families.wrappers import holds
from foveate.methods import Method, PixelMethod
from foveate.schedule import check_clip_places
from foveate.schedule.encoder_layers import encoder_methods, encoder_needs
from foveate.schedule.resizing import nearest_below, resize_mode
from foveate.tokens import Pixels, Signal
from foveate.transformers_api import is_transformers_model, refuse_checkpointing

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Handle(Protocol):
    """Whatever takes a hook off again."""

    def remove(self) -> None:
        """Take the hook off."""


class StaysWithModel:
    """Refuse to be copied: a hook belongs to the one model that it was put on."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise FoveateError(
            "a model can't be copied or pickled whole while foveate.apply is open on it, since its hooks would go "
            "along; end the apply first (foveate.detach ends what attach began), or take model.state_dict() or "
            "model.save_pretrained()"
        )


def _joined(rows: Tensor | None, more: Tensor) -> Tensor:
    """Put the rows `(..., D)` of one more call after those of the calls before it: `(tokens, D)`."""
    more = more.flatten(0, -2)
    return more if rows is None else torch.cat([rows, more])


class _OutsideGraph(StaysWithModel):
    """A hook for which a compiled model leaves its graph: each call changes something else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _outside_graph(function: Callable[..., Any]) -> Any:
    return _OutsideGraph(function)


# On the core, where image features meet text


class CoreHooks(StaysWithModel):
    """Calls hooks before and after the core, and before and after the model of transformers right around it.

    A core that makes logits itself is that model, too.

    Args:
        model: as the caller passed it; adapters and wrappers around the real model may never be called themselves.
        core: the module in which image features meet text.
        shortened: the module whose outputs come out short: the core, or its decoder if the core makes logits itself.
    """

    def __init__(self, model: nn.Module, core: nn.Module, shortened: nn.Module) -> None:
        self._core = core
        self._shortened = shortened
        self._generators = [
            each
            for each in model.modules()
            if hasattr(type(each), "prepare_inputs_for_generation") and holds(each, core)
        ]
        holders = [each for each in model.modules() if each is not core and holds(each, core)]
        # The innermost one: a wrapper between it and the core (a compiled core, say) gets the core's arguments alone.
        whole = core if shortened is not core else None
        self._around = next(filter(is_transformers_model, reversed(holders)), whole)
        self._handles: list[Handle] = []

    def open(
        self,
        before_model: Callable[[nn.Module, Arguments, Keywords], None],
        after_model: Callable[[nn.Module, Arguments, Any], None],
        before_core: Callable[[nn.Module, Arguments, Keywords], Any],
        after_core: Callable[[nn.Module, Arguments, Any], Any],
        end_call: Callable[[nn.Module, Arguments, Any], None],
        before_generate: Callable[[Keywords], None],
        before_prepare: Callable[[Keywords], None],
    ) -> None:
        """Put the hooks on; `after_model` and `end_call` are called even if the call failed.

        `before_generate` gets what `generate` is called with, and `before_prepare` what it passes to its model's
        `prepare_inputs_for_generation` before a call.
        """
        add = self._handles.append
        if self._around is not None:
            add(self._around.register_forward_pre_hook(_outside_graph(before_model), with_kwargs=True))
            add(self._around.register_forward_hook(_outside_graph(after_model), always_call=True))
        add(self._core.register_forward_pre_hook(_outside_graph(before_core), with_kwargs=True))
        add(self._shortened.register_forward_hook(_outside_graph(after_core)))
        add(self._core.register_forward_hook(_outside_graph(end_call), always_call=True))
        for module in self._generators:
            if hasattr(module, "generate"):
                add(on_call(module, "generate", before=before_generate))
            add(on_call(module, "prepare_inputs_for_generation", before=before_prepare))

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()


# On the encoder


class EncoderHooks(StaysWithModel):
    """Captures what an encoder's layers made, and runs the steps at `@pixels` and `@encoder`.

    The encoder runs exactly once, through the model's own code. Signals are computed later from what was captured: the
    queries and keys of one layer are enough, so the model is never asked for its attention maps. They are recorded
    while the layer runs and never recomputed, since a wrapper may take its weights away afterwards.

    Args:
        family: the model's family.
        signals: the signals that methods will ask for; queries and keys of their layers are kept.
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
        self.keep_pixels = any(isinstance(signal, Pixels) for signal in signals)
        self.pixels = pixels
        self.encoder = encoder
        self.mode = resize_mode(family, pixels)
        self._handles: list[Handle] = []
        self._local = threading.local()
        self._projects_inside = False  # whether the projector is a part of the tower, and so ends before it

    def open(self) -> None:
        """Put the hooks on."""
        family, add = self.family, self._handles.append
        if family.clip_places:
            add(on_call(family.core, "get_video_features", before=self._note_clips, ended=self._forget_clips))
        if not family.watches_tower:
            add(on_call(family.core, "get_image_features", self._note_arguments, self._capture_result))
            return
        if self.pixels is not None and family.resizes_inputs:
            add(on_call(family.core, "get_image_features", self._resize_arguments, self._grow_result))
        if self.encoder is not None:
            add(on_call(family.core, "get_image_features", family.check_read_layer))
        if family.encoder_arguments:
            add(on_call(family.core, "get_image_features", self._note_arguments, self._mark_result))
        add(family.tower.register_forward_pre_hook(_outside_graph(self._before_tower), with_kwargs=True))
        reads = range(family.encoder_reads) if self.encoder is not None and encoder_needs(self.encoder) else ()
        for layer in sorted({*self.layers, *reads}):
            hook = _outside_graph(partial(self._capture_attention, layer))
            add(family.encoder_attentions[layer].register_forward_pre_hook(hook, with_kwargs=True))
            for name, module in family.encoder_projections(layer).items():
                add(module.register_forward_hook(_outside_graph(partial(self._capture_projection, layer, name))))
        if self.encoder is not None:
            for layer, module in enumerate(family.encoder_layers):
                if layer:
                    hook = _outside_graph(partial(self._before_layer, layer))
                    add(module.register_forward_pre_hook(hook, with_kwargs=True))
        if self.keep_features:
            add(family.feature_module.register_forward_pre_hook(_outside_graph(self._before_projection)))
        self._projects_inside = any(part is family.projected_module for part in list(family.tower.modules())[1:])
        add(family.tower.register_forward_hook(_outside_graph(self._after_tower)))
        add(family.projected_module.register_forward_hook(_outside_graph(self._after_projection)))

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def complete(self, capture: Capture) -> bool:
        """Return whether a capture holds all that these hooks were to keep; one made by other hooks may not."""
        if self.encoder is not None and not capture.inside:
            reads = self.family.encoder_reads
            if any(encoder_methods(self.encoder, seen, reads) for seen in capture.seen):
                return False
        if (self.keep_features and capture.features is None) or (self.keep_pixels and capture.pixels is None):
            return False
        return set(self.layers) <= capture.attention.keys()

    @property
    def _capture(self) -> Capture | None:
        return getattr(self._local, "capture", None)

    @property
    def _pass(self) -> EncoderPass | None:
        return getattr(self._local, "encoder_pass", None)

    def _capture_result(self, output: Any) -> None:
        """Capture what comes out of an encoder of which nothing else is known."""
        arguments: Keywords = self._local.__dict__.pop("arguments", {})
        if hasattr(output, "pooler_output"):
            mark_images(output, self.family.encoded(output, arguments))

    def _note_arguments(self, arguments: Keywords) -> None:
        self._local.arguments = {name: arguments.get(name) for name in self.family.encoder_arguments}

    def _note_clips(self, arguments: Keywords) -> None:
        steps = {"pixels": self.pixels, "encoder": self.encoder, "features": self.keep_features}
        check_clip_places(self.family, [place for place, step in steps.items() if step])
        self._local.clips = arguments

    def _forget_clips(self) -> None:
        self._local.clips = None

    def _mark_result(self, output: Any) -> None:
        """Mark the images of what a model made anew of the output of its tower."""
        capture = self._local.__dict__.pop("encoded", None)
        if capture is not None and hasattr(output, "pooler_output") and images_of(output) is None:
            mark_images(output, capture)

    def _resize_arguments(self, arguments: Keywords) -> Keywords:
        assert self.pixels is not None
        layouts = self.family.layouts(arguments)
        # A row of the prompt may be without images.
        sizes = [self.pixels.shrink(layout) if layout.segments else (0, 0) for layout in layouts]
        sizes = self.family.sizes_together(layouts, sizes, arguments)
        self._local.resized = layouts, tuple(sizes)
        return self.family.resized_inputs(arguments, layouts, sizes, self.mode)

    def _grow_result(self, output: Any) -> None:
        """Repeat features up to the full count: `generate` counts them for its beams before the prompt is cut."""
        capture = images_of(output)
        if not isinstance(capture, Capture) or capture.seen == capture.layouts:
            return
        grown: list[Tensor] = []
        for rows, layout in zip(output.pooler_output, capture.layouts, strict=True):
            index = torch.arange(layout.placeholders, device=rows.device) * rows.shape[0] // max(1, layout.placeholders)
            grown.append(rows[index])
        output.pooler_output = torch.stack(grown) if isinstance(output.pooler_output, Tensor) else grown

    def _before_tower(self, module: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        arguments: Keywords | None = self._local.__dict__.pop("arguments", None)
        clips: Keywords | None = getattr(self._local, "clips", None)
        if clips is not None:
            capture = self.family.clip_call(args, {**clips, **kwargs})
        elif self.family.encoder_arguments and arguments is None:
            # The tower was called by itself: nothing will use these features.
            self._local.capture = None
            return None
        else:
            capture = self.family.tower_call(args, {**kwargs, **(arguments or {})})
        self._local.capture = capture
        call = None
        if self.pixels is not None and self.family.resizes_inputs:
            resized = self._local.__dict__.pop("resized", (capture.layouts, ()))
            capture.seen, (capture.layouts, capture.sizes) = capture.layouts, resized
        elif self.pixels is not None:
            sizes = [self.pixels.shrink(layout) for layout in capture.layouts]
            call = self.family.shrink(args, kwargs, capture, sizes, self.mode)
        if self.keep_pixels:
            capture.pixels = self.family.tower_pixels(*(call or (args, kwargs))).detach()
        if self.encoder is not None:
            (seen,) = set(capture.seen)
            methods = encoder_methods(self.encoder, seen, self.family.encoder_reads)
            refuse_checkpointing(self.family.encoder_layers, "encoder")
            self._local.encoder_pass = EncoderPass(self.family, capture, methods, seen)
        return call

    def _capture_attention(self, layer: int, module: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        if (capture := self._capture) is not None:
            capture.attention[layer] = {name: value for name, value in kwargs.items() if name != "hidden_states"}

    def _capture_projection(self, layer: int, name: str, module: nn.Module, args: Arguments, output: Tensor) -> None:
        if (capture := self._capture) is not None:
            capture.attention[layer][name] = output.detach()

    def _before_layer(self, layer: int, module: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        encoder_pass = self._pass
        if encoder_pass is None:
            return None
        names = ("hidden_states", "attention_mask")
        call = {**dict(zip(names, args)), **kwargs}
        call["hidden_states"] = encoder_pass.narrowed(layer, call["hidden_states"])
        if layer - 1 not in self.layers:
            encoder_pass.capture.attention.pop(layer - 1, None)
        if (bias := encoder_pass.bias(call["hidden_states"])) is not None:
            assert call.get("attention_mask") is None
            call["attention_mask"] = bias
        # Hidden states stay among the positional arguments if they came there: checkpointing looks for gradients there.
        positional = names[: len(args)]
        kwargs = {name: value for name, value in call.items() if name not in positional}
        return tuple(call[name] for name in positional) + args[len(positional) :], kwargs

    def _before_projection(self, module: nn.Module, args: Arguments) -> None:
        if (capture := self._capture) is not None:
            capture.features = _joined(capture.features, args[0]) if self.family.projects_each else args[0]

    def _after_tower(self, module: nn.Module, args: Arguments, output: Any) -> Any:
        # A backward pass may run the layers again, on what was merged before.
        self._local.encoder_pass = None
        if (capture := self._capture) is None:
            return None
        output = self.family.tower_output(output, capture)
        mark_images(output, capture)
        self._local.encoded = capture if self.family.encoder_arguments else None
        if self._projects_inside:
            self._local.capture = None
        return output

    def _after_projection(self, module: nn.Module, args: Arguments, output: Any) -> Any:
        capture = self._capture
        if capture is None:
            return None
        if self.family.projects_each:
            capture.projected = _joined(capture.projected, output)
            if capture.projected.shape[0] >= sum(layout.content for layout in capture.seen):
                self._local.capture = None
            return None
        if not self._projects_inside:
            self._local.capture = None
        rows = getattr(output, "pooler_output", None)
        capture.projected = output if isinstance(output, Tensor) else output.last_hidden_state if rows is None else rows
        capture.companions = self.family.output_companions(output)
        if self.family.resizes_inputs or (capture.seen == capture.layouts and not capture.inside):
            return None
        index = [nearest_below(seen, layout) for seen, layout in zip(capture.seen, capture.layouts, strict=True)]
        if capture.inside:
            rows = full_index(capture, self.family.projected(capture)[0].shape[0])
            assert rows is not None
            index = [row[places.to(row.device)] for row, places in zip(rows, index, strict=True)]
        return self.family.grow(output, capture, index)


@contextmanager
def hooked(hooks: EncoderHooks) -> Iterator[EncoderHooks]:
    """Put hooks on inside the block and take them off after it, whatever happens."""
    try:
        hooks.open()
        yield hooks
    finally:
        hooks.close()


# On the decoder


class DecoderHooks(StaysWithModel):
    """Runs a `DecoderPass` between the decoder's layers; put on where the first call needs them.

    Args:
        family: the model's family.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._handles: dict[Any, Handle] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def start(self, decoder_pass: DecoderPass | None) -> None:
        """Let `decoder_pass` act in this thread's next call of the decoder; None leaves the decoder alone."""
        self._local.decoder_pass = decoder_pass
        if decoder_pass is None:
            return
        first = decoder_pass.first
        with self._lock:
            if not self._handles:
                before = _outside_graph(self._before_decoder)
                self._handles["decoder"] = self._family.decoder.register_forward_pre_hook(before, with_kwargs=True)
            for layer in decoder_pass.recorded:
                for name, module in self._family.decoder_projections(layer).items():
                    if (layer, name) not in self._handles:
                        record = _outside_graph(partial(self._record, layer, name))
                        self._handles[layer, name] = module.register_forward_hook(record)
            if first in self._handles:
                return
            for layer in range(first, len(self._family.decoder_layers)):
                self._hook_layer(layer)

    @property
    def _pass(self) -> DecoderPass | None:
        return getattr(self._local, "decoder_pass", None)

    def _before_decoder(self, module: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        decoder_pass = self._pass
        if decoder_pass is None:
            return None
        kwargs = decoder_pass.before_decoder(kwargs)
        if isinstance(embedded := kwargs.get("inputs_embeds"), Tensor):
            # A core may leave them where its encoder lies.
            kwargs = {**kwargs, "inputs_embeds": embedded.to(self._family.device)}
        with self._lock:
            # What is added after a layer is added before the next one reads it: callers see the layer's own output, as
            # in the dense model.
            layers = self._family.decoder_layers
            for layer in range(1, min(decoder_pass.added + 1, len(layers))):
                self._hook_layer(layer)
            if decoder_pass.added == len(layers) and "last" not in self._handles:
                self._handles["last"] = layers[-1].register_forward_hook(_outside_graph(self._after_last))
        return args, kwargs

    def _hook_layer(self, layer: int) -> None:
        """Let `_before_layer` run before a layer; the lock is held."""
        if layer not in self._handles:
            hook = _outside_graph(partial(self._before_layer, layer))
            module = inside_wrapper(self._family.decoder_layers[layer])
            self._handles[layer] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def _before_layer(self, layer: int, module: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
        decoder_pass = self._pass
        if decoder_pass is None:
            return None
        if not args:
            kwargs = dict(kwargs)
            args = (kwargs.pop("hidden_states"),)
        names: list[str] = []
        if self._family.column_inputs:
            # Some may come by their place, and stay there: checkpointing looks for gradients among these.
            names = list(inspect.signature(module.forward).parameters)[1 : len(args)]
        hidden, call = decoder_pass.before_layer(layer, args[0], {**kwargs, **dict(zip(names, args[1:]))})
        rest = tuple(call.pop(name) for name in names)
        return (hidden, *rest, *args[1 + len(names) :]), call

    def _after_last(self, module: nn.Module, args: Arguments, output: Any) -> Any:
        decoder_pass = self._pass
        return None if decoder_pass is None else decoder_pass.with_addition(decoder_pass.added - 1, output)

    def _record(self, layer: int, name: str, module: nn.Module, args: Arguments, output: Tensor) -> None:
        if (decoder_pass := self._pass) is not None:
            decoder_pass.record(layer, name, output)

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.popitem()[1].remove()


# On a method that is not `forward`: torch has hooks for `forward` alone

_lock = threading.RLock()  # a handle that is collected inside the lock removes its hooks in it, too


class MethodHook:
    """A listener to the calls of a module's method; `remove` ends it."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        before: Callable[[dict[str, Any]], dict[str, Any] | None] | None,
        after: Callable[[Any], None] | None,
        ended: Callable[[], None] | None,
    ) -> None:
        self.before = before
        self.after = after
        self.ended = ended
        self._module = weakref.ref(module)
        self._name = name

    def remove(self) -> None:
        """Remove this listener; the last one restores the module's method."""
        module = self._module()
        if module is None:
            return
        with _lock:
            listened = vars(module)[self._name]
            listened.listeners.remove(self)
            if not listened.listeners:
                del vars(module)[self._name]
                if listened.own is not None:
                    vars(module)[self._name] = listened.own


def on_call(
    module: nn.Module,
    name: str,
    before: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    after: Callable[[Any], None] | None = None,
    ended: Callable[[], None] | None = None,
) -> MethodHook:
    """Listen to the calls of a module's method: `before` gets the arguments by name, `after` what is returned.

    `ended` is called at the end of each call, also if it failed.

    If `before` returns arguments, the method and later listeners get these. Only this module is concerned, not its
    class, and the method keeps its signature. Listeners come and go in any order, from any thread.

    >>> class Adder(nn.Module):
    ...     def add(self, one, other=2):
    ...         return one + other
    >>> adder, seen = Adder(), []
    >>> handle = on_call(adder, "add", before=seen.append, after=seen.append)
    >>> adder.add(3), adder.add(3, other=4), seen
    (5, 7, [{'one': 3}, 5, {'one': 3, 'other': 4}, 7])
    >>> handle.remove()
    >>> "add" in vars(adder)
    False
    """
    hook = MethodHook(module, name, before, after, ended)
    with _lock:
        if not hasattr(vars(module).get(name), "listeners"):
            vars(module)[name] = _listened(module, name)
        vars(module)[name].listeners.append(hook)
    return hook


def _listened(module: nn.Module, name: str) -> Any:
    """Return what stands for a module's method while it has `listeners`; `own` is what the module itself had there."""
    # The class's method is bound at each call: held here, the module would keep itself alive.
    own, shared = vars(module).get(name), getattr(type(module), name)
    owner = weakref.ref(module)
    method = getattr(module, name)
    signature = inspect.signature(method)

    @functools.wraps(shared)
    def listened(*args: Any, **kwargs: Any) -> Any:
        this, listeners = owner(), tuple(noted.listeners)
        try:
            for each in listeners:
                if each.before is not None:
                    changed = each.before({**signature.bind_partial(*args).arguments, **kwargs})
                    args, kwargs = (args, kwargs) if changed is None else ((), changed)
            output = shared(this, *args, **kwargs) if own is None else own(*args, **kwargs)
            for each in listeners:
                if each.after is not None:
                    each.after(output)
            return output
        finally:
            for each in listeners:
                if each.ended is not None:
                    each.ended()

    noted: Any = listened
    noted.__signature__ = signature
    noted.own = own
    # Here and not in a list of all models, which would keep each of them while it is listened to.
    noted.listeners = []
    return noted
