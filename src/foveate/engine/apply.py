"""Compress inside a model's own `forward` and `generate`, by hooks that are gone when the block ends.

What `generate` and its callers believe in, the whole prompt, stays true for them: ids, masks, labels and logits keep
their length. The decoder sees the shorter prompt. Between the two stands one forward pre-hook on the module in which
image features meet text, and one forward hook behind it; steps inside the decoder act in pre-hooks of its layers.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.compress import PER_COLUMN, refuse_video, text_positions
from foveate.engine.cut import Cut, cut_prompt
from foveate.engine.decoder import DecoderWatch, Descent
from foveate.engine.encode import Encoded, encoded_from
from foveate.engine.planning import ImagePlan, encoded_of, plan_images
from foveate.engine.report import Ledger, Report
from foveate.engine.signals import Asked
from foveate.engine.state import CacheState, Held, set_state, state_of
from foveate.engine.text import texts_of
from foveate.engine.timing import now
from foveate.engine.watch import EncoderWatch, capture_of
from foveate.errors import FoveateError
from foveate.families import Capture, Family, family_of
from foveate.plan import Plan
from foveate.schedule import Schedule, schedule
from foveate.spec import Spec
from foveate.tokens import Signal
from foveate.transformers_api import cache_of_call, cache_of_output

_active: weakref.WeakKeyDictionary[nn.Module, Run] = weakref.WeakKeyDictionary()


@contextmanager
def apply(model: nn.Module, spec: str | Spec, *, synchronise: bool = False) -> Iterator[Run]:
    """Give a model fewer visual tokens for as long as the block lasts.

    The model's own `forward`, `generate`, pipelines and trainers go on working: beams, left-padded batches, several
    images per prompt, text-only prompts, labels, second turns on one cache, several conversations at once. A cache
    filled inside the block knows what it holds and can be used again inside a later block.

    Args:
        model: a model of a supported family; its weights and code aren't touched.
        spec: what to do, for instance "cluster:64".
        synchronise: wait for the device around the compressor, so that its time in the report is right on CUDA.

    Yields:
        A `Run`; `print(run.report())` tells tokens before and after.

    Raises:
        FoveateError: the spec can't be done on this model, or an `apply` on it is open already.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.
    """
    family = family_of(model)
    plan = schedule(spec, family)
    if family.core in _active:
        raise FoveateError(
            f"{_active[family.core].spec} is applied to this model already; compose by spec: "
            f'apply(model, "{_active[family.core].spec}+{plan.spec}")'
        )
    run = Run(model, family, plan, synchronise)
    memories = {name: getattr(family.core, name) for name in family.memories}
    _active[family.core] = run
    try:
        run._open()
        yield run
    finally:
        run._close()
        del _active[family.core]
        for name, value in memories.items():
            setattr(family.core, name, value)


@dataclass
class _Pending:
    """What the hook behind the module must do for the call that is under way."""

    restore: Tensor | None
    """`(B, S)`: for each column that the caller passed, the place whose hidden state stands for it."""
    state: CacheState | None
    """What the cache will hold when the call is done, as layer 0 sees it; None leaves its state as it is."""
    descent: Descent | None = None
    """What happens inside the decoder; None for nothing."""
    known: _Known | None = None
    """What is remembered of the images that came."""
    order: Sequence[int] = ()
    """The number of each image of the call among them."""
    seen: int = 0
    """How many tokens were passed that the conversation held already."""
    prompt: _Prompt | None = None
    """What is to be remembered of the call if it leaves no cache."""

    def restore_index(self, hidden: Tensor, layer: int | None = None) -> Tensor | None:
        """For each column that the caller passed, the place in `hidden` that stands for it; None: its own.

        `hidden` comes from behind a decoder layer, None for the last one; -1 is what enters the first.
        """
        restore = self.restore
        if self.descent is not None and (line := self.descent.restore(layer)) is not None:
            restore = line
        if not self.seen:
            return restore
        if restore is None:
            restore = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        return torch.cat([restore[:, :1].expand(-1, self.seen), restore], dim=1)


@dataclass
class _Known:
    """What a run remembers of images that were encoded together, for as long as their features live.

    Attributes:
        plans: what became of each image before the decoder.
        entry: the number of the first one in the report.
        signals: what the encoder said of each of them, for steps inside the decoder.
        prompt: the last one that they came with and that left no cache, before something was said behind it.
    """

    plans: list[ImagePlan]
    entry: int
    signals: Mapping[Signal, Sequence[Tensor]]
    prompt: _Prompt | None = None


@dataclass(frozen=True)
class _Prompt:
    """A prompt without a cache, whose plans hold for as long as only something is added behind it.

    Attributes:
        ids: `(B, S)` int64.
        mask: `(B, S)`, 0 at padding; None for no padding.
        last: how many of its last columns made predictions.
        plans: those that were made inside the decoder, in order.
    """

    ids: Tensor
    mask: Tensor | None
    last: int
    plans: list[Plan]

    def begins(self, ids: Tensor, mask: Tensor | None, last: int) -> bool:
        """Whether a call is this prompt, asked for the same and with something behind it."""
        width = self.ids.shape[1]
        if last != self.last or ids.shape[0] != self.ids.shape[0] or not torch.equal(ids[:, :width], self.ids):
            return False
        if mask is None and self.mask is None:
            return True
        one, other = (torch.ones_like(self.ids) if each is None else each[:, :width] for each in (mask, self.mask))
        return torch.equal(one.bool(), other.bool())


class Run:
    """An `apply` in progress, and its report."""

    def __init__(self, model: nn.Module, family: Family, plan: Schedule, synchronise: bool) -> None:
        self.spec = plan.spec
        self._model = model
        self._family = family
        self._schedule = plan
        self._synchronise = synchronise
        self._ledger = Ledger(str(plan.spec), len(family.decoder_layers))
        self._window = family.window
        self._watch = EncoderWatch(family, plan.encoder_signals, bool(plan.features), plan.pixels, plan.encoder)
        self._decoder = DecoderWatch(family)
        self._signature = inspect.signature(family.core.forward)
        self._handles: list[Any] = []
        self._local = threading.local()
        self._device = next(family.core.parameters()).device
        # Without a cache, `generate` passes the same features at every step.
        self._plans: weakref.WeakKeyDictionary[Capture | Encoded, _Known] = weakref.WeakKeyDictionary()

    def report(self) -> Report:
        """Tokens before and after, per image, and our own time, so far."""
        return self._ledger.report()

    def _open(self) -> None:
        core = self._family.core
        self._watch.open()
        # Adapters and wrappers around the model may never be called, or not with its arguments.
        around = next((each for each in self._model.modules() if any(part is core for part in each.children())), None)
        if around is not None:
            self._handles.append(around.register_forward_pre_hook(self._asked, with_kwargs=True))
            self._handles.append(around.register_forward_hook(self._answered, always_call=True))
        self._handles.append(core.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(core.register_forward_hook(self._after, with_kwargs=True))
        self._handles.append(core.register_forward_hook(self._done, always_call=True))

    def _close(self) -> None:
        self._watch.close()
        self._decoder.close()
        while self._handles:
            self._handles.pop().remove()

    # The hooks

    def _asked(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Around the core, what is asked for tells where the prompt ends."""
        _check_labels(args, kwargs)
        last = kwargs.get("logits_to_keep")
        self._local.asked = Asked(kwargs.get("labels"), last if isinstance(last, int) and last > 0 else 1)

    def _answered(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """What was asked for holds for one call, whatever comes of it."""
        self._local.asked = Asked()

    def _done(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Nothing of a call is held on to, not even of one that failed."""
        self._local.pending = None
        self._decoder.start(None)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._local.pending = None
        self._decoder.start(None)
        call = self._arguments(args, kwargs)
        refuse_video(self._family, call)
        output = (call.get("mm_encoder_outputs") or {}).get("image")
        pixels = call.get("pixel_values")
        cache = cache_of_call(call)
        state = state_of(cache)
        held = 0 if cache is None else int(cache.get_seq_length())
        if state is None:
            self._check_layers(cache, held, None, 0)
            if output is None and pixels is None:
                return None
        _refuse_prepared_mask(call)
        ids = call.get("input_ids")
        embeds = call.get("inputs_embeds")
        if ids is None and (output is not None or pixels is not None):
            raise FoveateError("images with inputs_embeds are not supported; pass input_ids")
        given = ids if ids is not None else embeds
        assert given is not None
        passed = given.shape[1]

        new = passed
        tail = 0
        if state is not None:
            state = state.rows(given.shape[0])
            tail = held - state.first.length
            if tail < 0:
                # Decoding with drafts takes back what it has guessed wrong, at first from the prompt's own call.
                state = state.cropped(-tail)
                set_state(cache, state)
                tail = 0
            self._check_layers(cache, held, state, tail)
            new = self._new_tokens(call, state, held, passed)
            call = _last(call, new)
            ids = call.get("input_ids")

        if output is None and pixels is None:
            assert state is not None
            call, pending = self._go_on(call, state, tail, new)
        else:
            if output is None:
                output = self._family.encode(call)
            assert ids is not None
            known, order = self._images(output, ids, call.get("attention_mask"))
            call, pending = self._begin(call, known, order, state, held, tail)
        pending.seen = passed - new
        self._local.pending = pending
        self._decoder.start(pending.descent)
        return (), call

    def _check_layers(self, cache: Any, held: int, state: CacheState | None, tail: int) -> None:
        """Whether the layers of a cache hold as many tokens as they should, `held` being those of the first.

        Raises:
            FoveateError: they don't.
        """
        layers = {step.layer for step in self._schedule.depth}
        if state is not None:
            layers |= {each.layer for each in state.held}
        for layer in layers - {0} if held else ():
            expected = held if state is None else state.at(layer).length + tail
            found = int(cache.get_seq_length(layer))
            if found != expected:
                raise FoveateError(
                    f"layer {layer} of the cache holds {found} tokens and should hold {expected}: a call on it failed "
                    "inside the decoder; begin again with an empty cache"
                )

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pending: _Pending | None = getattr(self._local, "pending", None)
        if pending is None:
            return None
        descent = pending.descent
        if descent is not None:
            self._remember(pending, descent)
        hidden = output[0]
        restore = pending.restore_index(hidden)
        if restore is not None:
            hidden = _columns(hidden, restore)
        cache = cache_of_output(output)
        if isinstance(output, tuple):
            output = (hidden, *output[1:])
        else:
            output.last_hidden_state = hidden
            if getattr(output, "hidden_states", None) is not None:
                output.hidden_states = self._between(pending, output.hidden_states)
        if cache is None and pending.known is not None and pending.prompt is not None:
            pending.known.prompt = pending.prompt
        if cache is not None and pending.state is not None:
            set_state(cache, pending.state if descent is None else descent.behind(pending.state))
        return output

    def _between(self, pending: _Pending, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What entered the decoder and what each of its layers returned, every column that the caller passed in it."""
        restored: list[Tensor] = []
        for layer, hidden in enumerate(states, start=-1):
            restore = pending.restore_index(hidden, layer)
            restored.append(hidden if restore is None else _columns(hidden, restore))
        return tuple(restored)

    def _remember(self, pending: _Pending, descent: Descent) -> None:
        """Enter what steps inside the decoder did in the report, and keep their plans where they are needed again."""
        known = pending.known
        if known is None:
            return
        for layer, counts in descent.counts.items():
            for number, count in zip(pending.order, counts, strict=True):
                self._ledger.descend(known.entry + number, layer, count)
        self._ledger.milliseconds += descent.milliseconds
        self._ledger.inside += descent.milliseconds

    # What a call becomes

    def _images(self, output: Any, ids: Tensor, mask: Tensor | None) -> tuple[_Known, Sequence[int]]:
        """The images of a call, and their numbers in prompt order; beams of one sample share them."""
        features = output.pooler_output
        encoded = encoded_of(output)
        if encoded is not None:
            encoded.check(self._schedule)
        capture = capture_of(output) if encoded is None else encoded
        if capture is None or (isinstance(capture, Capture) and not self._watch.saw_all(capture)):
            raise FoveateError(
                "image features came that were not made under this apply, or were taken apart by chunked prefill; pass "
                "pixel_values without chunking, or inputs from foveate.compress without apply"
            )
        order = _order_of_images(features, capture, lambda: (ids == self._family.image_token).sum(dim=1))
        if isinstance(capture, Capture):
            capture, order = self._family.in_prompt(capture, order, ids)
        began = now(self._device, self._synchronise)
        known = self._plans.get(capture)
        if known is None:
            if isinstance(capture, Capture):
                signals, features = self._schedule.encoder_signals, bool(self._schedule.features)
                encoded = encoded_from(self._family, capture, signals, features)
            else:
                encoded = capture
            texts = None
            if self._schedule.reads_text:
                fresh = None if mask is None else mask[:, -ids.shape[1] :]
                layouts = [capture.layouts[number] for number in order]
                every = texts_of(self._family, ids, fresh, layouts)
                texts = [every[order.index(number)] for number in range(len(capture.layouts))]
            plans = plan_images(self._family, self._schedule, encoded, texts)
            entry = self._ledger.add(plans, (now(self._device, self._synchronise) - began) * 1e3)
            known = _Known(plans, entry, encoded.signals if self._schedule.depth else {})
            self._plans[capture] = known
        return known, order

    def _begin(
        self,
        call: dict[str, Any],
        known: _Known,
        order: Sequence[int],
        state: CacheState | None,
        held: int,
        tail: int,
    ) -> tuple[dict[str, Any], _Pending]:
        """A call that brings images, at the start of a conversation or later in it."""
        began = now(self._device, self._synchronise)
        family = self._family
        ids: Tensor = call["input_ids"]
        images = [known.plans[number] for number in order]
        rows, new = ids.shape
        if held and call.get("token_type_ids") is not None:
            raise FoveateError(
                "an image in a later turn is not supported for models whose images look in both directions: their "
                "token types would have to tell of the cache, too; pass the whole conversation without a cache"
            )
        whole: Tensor | None = call.get("attention_mask")
        if state is None and held:
            # Plain text came before, with nothing of ours: every cached place is its own column.
            columns = torch.arange(held, device=ids.device).expand(rows, -1)
            seen = columns.new_full((rows,), held)
            # A model whose plain positions count padding has no padding in those that `generate` passes.
            if whole is not None and not (family.counts_padding and call.get("position_ids") is None):
                seen = whole[:, :held].sum(dim=1)
            state, tail = CacheState(held, (Held(0, columns, seen, padded=False),)), 0
        past = 0 if state is None else state.logical + tail
        cut = cut_prompt(
            family,
            ids,
            None if whole is None else whole[:, past:],
            call.get("position_ids"),
            [image.cut for image in images],
            start=None if state is None else state.first.following + tail,
        )
        mask = cut.attention_mask
        columns, padded = cut.columns, cut.padded
        if state is not None:
            mask = torch.cat([state.first.mask(whole, state.logical, tail), mask], dim=1)
            columns, padded = state.first.grown(state.logical, tail, columns), padded or state.first.padded
        visual = cut.input_ids == family.image_token
        if cut.padded:
            visual &= cut.columns >= 0
        after = CacheState(past + new, (Held(0, columns, cut.following, padded),), _text_at_end(cut, visual))
        descent = self._descent(call, state, tail, whole, past + new)
        prompt: _Prompt | None = None
        if descent is not None:
            asked: Asked = getattr(self._local, "asked", Asked())
            if asked.labels is None and cache_of_call(call) is None and not call.get("use_cache"):
                prompt = known.prompt
                if prompt is not None and prompt.begins(ids, whole, asked.last):
                    descent.plans, descent.made_for = prompt.plans, prompt.ids.shape[1]
                else:
                    prompt = _Prompt(ids, whole, asked.last, descent.plans)
            descent.prompt(ids, cut, visual, images, order, known.signals, self._schedule, asked)
        call = self._shortened(call, cut, images)
        call["attention_mask"] = mask
        self._ledger.milliseconds += (now(self._device, self._synchronise) - began) * 1e3
        whole_left = cut.columns.shape == ids.shape and not cut.padded
        return call, _Pending(None if whole_left else cut.restore_index(), after, descent, known, order, prompt=prompt)

    def _descent(
        self, call: dict[str, Any], state: CacheState | None, tail: int, whole: Tensor | None, length: int
    ) -> Descent | None:
        """What is to happen inside the decoder of a conversation that is then `length` tokens long; None: nothing.

        Raises:
            FoveateError: its layers can't hold different numbers of tokens.
        """
        layers = {0} if state is None else {held.layer for held in state.held}
        layers |= {step.layer for step in self._schedule.depth}
        if len(layers) == 1:
            return None
        if getattr(cache_of_call(call), "is_compileable", False):
            raise FoveateError(
                "a static cache has one length for all layers, and steps inside the decoder make them differ; use the "
                "dynamic cache"
            )
        window = self._window
        if window is not None and length > window:
            raise FoveateError(
                f"the conversation has {length} tokens and this decoder's layers see {window}; behind a step inside "
                "the decoder their windows would hold other tokens, so use @input, or shorten it"
            )
        return Descent(
            self._family, sorted(layers), state, tail, whole, clock=lambda: now(self._device, self._synchronise)
        )

    def _shortened(self, call: dict[str, Any], cut: Cut, images: list[ImagePlan]) -> dict[str, Any]:
        family = self._family
        ids: Tensor = call["input_ids"]
        call = {name: value for name, value in call.items() if name not in family.pixel_inputs}
        call["input_ids"] = cut.input_ids
        call["position_ids"] = cut.position_ids
        call["mm_encoder_outputs"] = family.container(
            [image.cut.features for image in images], [image.cut.companions for image in images]
        )
        for name, fill in PER_COLUMN.items():
            if call.get(name) is not None:
                # Decoding with drafts adds ids to the prompt, and no types.
                drafts = ids.shape[1] - call[name].shape[-1]
                call[name] = cut.take(torch.nn.functional.pad(call[name], (0, max(0, drafts)), value=fill), fill)
        return call

    def _go_on(self, call: dict[str, Any], state: CacheState, tail: int, new: int) -> tuple[dict[str, Any], _Pending]:
        """A call of plain text behind a compressed beginning: a step of decoding, or a second turn."""
        whole: Tensor | None = call.get("attention_mask")
        first = state.first
        start = first.following + tail
        fresh = None if whole is None or new == 1 else whole[:, -new:]
        call["position_ids"] = text_positions(start, new, fresh, self._family.position_axes)
        after = None
        if whole is not None or first.padded:
            call["attention_mask"] = first.mask(whole, state.logical, tail + new)
        if fresh is not None:
            # Padding inside a later turn doesn't move positions on, so the turn joins the compressed beginning.
            columns, following = first.grown(state.logical, tail + new), start + fresh.long().sum(dim=1)
            after = CacheState(state.logical + tail + new, (Held(0, columns, following, first.padded),))
        descent = None
        if len(state.held) > 1:
            descent = self._descent(call, state, tail, whole, state.logical + tail + new)
            assert descent is not None
            descent.text(new, fresh)
        return call, _Pending(None, after, descent)

    # The caller's arguments

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument of a call by its name."""
        if not args:
            return dict(kwargs)
        return {**self._signature.bind_partial(*args).arguments, **kwargs}

    def _new_tokens(self, call: dict[str, Any], state: CacheState, held: int, passed: int) -> int:
        """How many of the tokens that were passed are new to the conversation.

        `generate`, given the whole conversation and a cache, passes what stands behind the cache's own length, which
        is shorter than the conversation was: the rest has been seen.
        """
        past = state.logical + held - state.first.length
        mask = call.get("attention_mask")
        if mask is not None:
            new = mask.shape[1] - past
            if new == passed or (mask.shape[1] - held == passed and 0 < new < passed):
                return new
            raise FoveateError(
                f"the attention mask has {mask.shape[1]} columns; the conversation so far has {past}, and {passed} "
                "tokens came, so it needs one column for each of both"
            )
        excess = past - held
        positions = call.get("position_ids")
        if positions is None or passed <= max(excess, 1):
            return passed
        return passed - excess if self._family.text_position(positions) == held else passed


def _order_of_images(
    features: Sequence[Tensor] | Tensor, capture: Capture | Encoded, placeholders: Callable[[], Tensor]
) -> list[int]:
    """The number of each image that came to the decoder; `generate` repeats the images of a sample for its beams.

    Args:
        features: what came, a list or a tensor with a row per image.
        capture: of the images that the encoder saw.
        placeholders: tells `(B,)`, how many of them each row of the prompt holds.

    Raises:
        FoveateError: other images came than the encoder saw.
    """
    held = len(capture.layouts)
    if isinstance(features, Tensor):
        # Beams are new rows of a new tensor; the rows of the prompt tell which belong together.
        beams, rest = divmod(len(features), held)
        if beams <= 1 and not rest:
            return list(range(held))
        order: list[int] = []
        following = 0
        held_by = placeholders()
        for count in held_by[::beams].tolist() if not rest and held_by.shape[0] % beams == 0 else ():
            first, need = following, count
            while need > 0 and following < held:
                need -= capture.layouts[following].total
                following += 1
            order += list(range(first, following)) * beams
        if len(order) == len(features):
            return order
        came = len(features)
    else:
        # The same tensors come again. The order in which new ones turn up is the encoder's.
        numbers: dict[int, int] = {}
        order = [numbers.setdefault(id(feature), len(numbers)) for feature in features]
        if len(numbers) == held:
            return order
        came = len(numbers)
    raise FoveateError(
        f"the encoder saw {held} images and {came} came to the decoder; chunked prefill is not supported under apply"
    )


def _columns(hidden: Tensor, places: Tensor) -> Tensor:
    """Hidden states `(B, M, D)` at places `(B, S)`: `(B, S, D)`."""
    rows, width, _ = hidden.shape
    flat = places + torch.arange(rows, device=places.device)[:, None] * width
    return hidden.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, -1)


def _text_at_end(cut: Cut, visual: Tensor) -> Tensor:
    """How many columns at the end of a prompt are text in every row: `()` int64. `visual` `(B, M)` marks the others."""
    other = visual | (cut.columns < 0) if cut.padded else visual
    width = other.shape[1]
    return width - (other * torch.arange(1, width + 1, device=other.device)).amax()


def _last(call: dict[str, Any], count: int) -> dict[str, Any]:
    """The call with only the last `count` columns of whatever has one value per new token."""
    call = dict(call)
    for name in ("input_ids", "position_ids", *PER_COLUMN):
        if call.get(name) is not None:
            call[name] = call[name][..., -count:]
    if call.get("inputs_embeds") is not None:
        call["inputs_embeds"] = call["inputs_embeds"][:, -count:]
    return call


def _refuse_prepared_mask(call: dict[str, Any]) -> None:
    mask = call.get("attention_mask")
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return
    raise FoveateError(
        "apply needs a 2-D attention mask; a prepared one comes from a static cache or from the caller. Use the "
        "dynamic cache, or foveate.compress, whose shorter inputs take any cache"
    )


def _check_labels(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Whether every token of a prompt has its label, where every token makes a prediction.

    Raises:
        FoveateError: there are more or fewer labels than tokens.
    """
    labels, last = kwargs.get("labels"), kwargs.get("logits_to_keep")
    prompt = kwargs.get("input_ids", args[0] if args else None)
    prompt = kwargs.get("inputs_embeds") if prompt is None else prompt
    every = last is None or (isinstance(last, int) and last == 0)
    if labels is None or labels.ndim != 2 or prompt is None or not every:
        return
    if labels.shape[1] != prompt.shape[1]:
        raise FoveateError(
            f"{labels.shape[1]} labels came and {prompt.shape[1]} were expected: one for every token of the prompt, "
            "placeholders of the image too, and -100 where nothing is to be predicted"
        )
