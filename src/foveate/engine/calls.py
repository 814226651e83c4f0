"""What becomes of each call of a model under `apply`.

`generate` and its callers go on to see the full prompt: ids, masks, labels and logits keep its length. The decoder sees
the shorter one. Before the core the call is made shorter; after it the full length is restored, and the cache is marked
with what it now holds.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.caches import begin_call, cache_state, end_call, refuse_rebuilt, remember, set_cache_state
from foveate.engine.columns import text_positions
from foveate.engine.containers import images_of, original
from foveate.engine.decoder import DecoderPass
from foveate.engine.encode import Encoded, encoded_from, images_of_prompt, joined, moved, note_form, time_clips
from foveate.engine.hooks import CoreHooks, DecoderHooks, EncoderHooks, StaysWithModel
from foveate.engine.images import plan_images
from foveate.engine.inputs import (
    check_generation,
    check_ids,
    check_mask,
    check_positions,
    check_tensor,
    check_visual_inputs,
)
from foveate.engine.known import KnownImages, PreparedInputs, Question, UncachedPrompt
from foveate.engine.modalities import (
    CLIP,
    IMAGE,
    MODALITIES,
    Item,
    brought,
    check_clips,
    containers,
    placeholders_of,
    prompt_order,
    run_encoder,
    visual_inputs,
)
from foveate.engine.pending import PendingCall
from foveate.engine.prompt import (
    PER_COLUMN,
    CompressedImage,
    CutPrompt,
    WantedPredictions,
    cut_prompt,
    refuse_missing_images,
    refuse_packed,
    texts_of,
)
from foveate.engine.report import ReportBuilder
from foveate.engine.state import CachedPrefix, CacheState, LayerState
from foveate.engine.timing import now
from foveate.errors import FoveateError
from foveate.families import Capture, Family
from foveate.families.placement import weights_at_hand
from foveate.schedule import Schedule
from foveate.transformers_api import (
    cache_of_call,
    cache_of_output,
    refuse_checkpointing,
    refuse_chunks,
    refuse_mixed_images,
    takes_any_mask,
)

Call = dict[str, Any]
_TYPES = {name: fill for name, fill in PER_COLUMN.items() if name != "labels"}
"""Arguments that are cut along with the prompt. A core that gets labels compares them with logits of full length."""
_CUT = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "mm_encoder_outputs"}
"""Arguments of a call with a value per column that are made anew."""


class CoreCalls(StaysWithModel):
    """Rewrites the calls of one model for one schedule, and reports what it did.

    Args:
        model: as the caller passed it.
        family: of the model.
        schedule: the steps.
        synchronise: whether to wait for the device when the compressor's time is read.
    """

    def __init__(self, model: nn.Module, family: Family, schedule: Schedule, synchronise: bool) -> None:
        self._hides_any = takes_any_mask(family.decoder_config)
        if schedule.layers:
            refuse_checkpointing(family.decoder_layers, "decoder")
            if not self._hides_any:
                _refuse_blocks(family)
                _refuse_positions(family)
        if schedule.encoder:
            refuse_checkpointing(family.encoder_layers, "encoder")
        self.schedule = schedule
        self.family = family
        self._model = model
        self.builder = ReportBuilder(str(schedule.spec), len(family.decoder_layers))
        self._synchronise = synchronise
        self._reach = min((length for length in (family.window, family.chunk) if length is not None), default=None)
        self._encoder_hooks = EncoderHooks(
            family, schedule.encoder_signals, bool(schedule.features), schedule.pixels, schedule.encoder
        )
        self._decoder_hooks = DecoderHooks(family)
        self._core_is_whole = family.shortened_module is not family.core
        self._core_hooks = CoreHooks(model, family.core, family.shortened_module)
        self._signature = inspect.signature(family.core.forward)
        self._local = threading.local()
        self._device = family.device
        # Without a cache, `generate` passes the same features at every step.
        self._known: weakref.WeakKeyDictionary[Capture | Encoded, KnownImages] = weakref.WeakKeyDictionary()
        self._left_behind: dict[str, Any] = {}

    def open(self) -> None:
        """Put the hooks on."""
        self._left_behind = {name: getattr(self.family.core, name) for name in self.family.memories}
        self._encoder_hooks.open()
        self._core_hooks.open(
            before_model=self._before_model,
            after_model=self._after_model,
            before_core=self._before_core,
            after_core=self._after_core,
            end_call=self._end_call,
            before_generate=self._before_generate,
            before_prepare=self._before_prepare,
        )

    def close(self) -> None:
        """Take the hooks off, and put back what calls leave behind on the core."""
        self._encoder_hooks.close()
        self._decoder_hooks.close()
        self._core_hooks.close()
        for name, value in self._left_behind.items():
            setattr(self.family.core, name, value)

    def _now(self) -> float:
        return now(self._device, self._synchronise)

    # What the hooks call

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        """Note which predictions the caller wants: they show where the prompt ends."""
        _check_labels(args, kwargs)
        # Some models can't be asked for a few logits: for them `generate` doesn't say how many guesses come along.
        guesses = self._local.__dict__.pop("guesses", 0)
        last = kwargs.get("logits_to_keep", 1 + guesses)
        last = last if isinstance(last, int) and last > 0 else 1
        self._local.wanted = WantedPredictions(kwargs.get("labels"), last)

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget what the caller wanted, whatever came of the call."""
        self._local.wanted = WantedPredictions()

    def _end_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Drop what is kept of a call, even of one that failed."""
        self._pend(None)

    def _pend(self, pending: PendingCall | None) -> None:
        """Keep what is left to do for this thread's running call."""
        self._local.pending = pending
        if pending is None and (cache := self._local.__dict__.pop("cache", None)) is not None:
            end_call(cache)
        self._decoder_hooks.start(None if pending is None else pending.decoder_pass)

    def _before_generate(self, arguments: Call) -> None:
        """Check what the caller gives to `generate`, which encodes images before it calls the core."""
        check_generation(arguments)
        ids = arguments.get("input_ids", arguments.get("inputs"))
        self._local.asked = ids.shape[-1] if isinstance(ids, Tensor) else None
        check_visual_inputs(self.family, arguments)

    def _before_prepare(self, arguments: Call) -> None:
        """Note what `generate` is about to pass: some models hide its length and position ids from their own call."""
        refuse_chunks(arguments)
        ids, cache = arguments.get("input_ids"), cache_of_call(arguments)
        self._local.prepared = None
        if ids is not None and cache is not None and arguments.get("inputs_embeds") is None:
            asked: int | None = getattr(self._local, "asked", None)
            self._local.guesses = 0 if asked is None else max(0, ids.shape[1] - asked)
            taken, positions = arguments.get("next_sequence_length"), arguments.get("position_ids")
            self._local.prepared = PreparedInputs(weakref.ref(cache), ids.shape[1], taken, positions)

    def _before_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> Any:
        """Return the shorter call, or None where there is nothing to do."""
        self._pend(None)
        prepared: PreparedInputs | None = self._local.__dict__.pop("prepared", None)
        if getattr(module, "_is_replica", False):
            raise FoveateError(
                "DataParallel over several GPUs calls copies of the model, which apply doesn't know; use "
                "DistributedDataParallel, or a single GPU"
            )
        call = {**self._signature.bind_partial(*args).arguments, **kwargs} if args else dict(kwargs)
        if self._core_is_whole:
            # Wrappers around a model move what it is called with; those of the core itself only do so behind this hook.
            call = moved(call, self._device)
        check_ids(call.get("input_ids"))
        check_positions(call.get("position_ids"))
        check_clips(self.family, call)
        encoded = call.get("mm_encoder_outputs") or {}
        outputs = {name: encoded[name] for name in MODALITIES if encoded.get(name) is not None}
        pixels = [name for name in brought(self.family, call) if name not in outputs]
        brings_images = bool(outputs or pixels)
        cache = cache_of_call(call)
        state = cache_state(cache)
        cached = 0 if cache is None else int(cache.get_seq_length())
        if state is None:
            if cached:
                refuse_rebuilt(cache)
            self._check_layers(cache, cached, None, 0)
            if not brings_images:
                ids = call.get("input_ids")
                if not cached and isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] > 1:
                    refuse_missing_images(self.family, ids)
                return None
        _check_call(call, brings_images)
        rows, passed = _passed(call).shape[:2]
        new = passed
        prefix = CachedPrefix(None, cached)
        if state is not None:
            prefix = self._cached_prefix(cache, state, cached, rows)
            new = self._new_tokens(call, prefix, passed, prepared)
            call = _last(call, new)
        if brings_images:
            if pixels:
                # `generate` has checked its own.
                check_visual_inputs(self.family, call)
            with weights_at_hand(self.family.core):
                outputs |= {name: run_encoder(self.family, name, call) for name in pixels}
                known, order = self._images(outputs, call)
            call, pending = self._call_with_images(call, known, order, prefix)
        else:
            call, pending = self._call_with_text(call, prefix)
        pending.seen = passed - new
        # Some cores drop hidden states that predict nothing.
        asks = "logits_to_keep" in call and not self._core_is_whole
        if asks and not pending.ends_alike(call["logits_to_keep"], _passed(call).shape[1]):
            del call["logits_to_keep"]
        self._pend(pending)
        if state is not None:
            self._local.cache = cache
            begin_call(cache)
        return (), call

    def _after_core(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Restore the full length, and note on the cache what it now holds."""
        pending: PendingCall | None = getattr(self._local, "pending", None)
        if pending is None:
            return None
        if pending.decoder_pass is not None:
            pending.decoder_pass.check_reached()
        self._report(pending)
        cache, state = cache_of_output(output), pending.state_after()
        output = pending.restored_output(output, state)
        if cache is None and pending.known is not None and pending.prompt is not None:
            pending.known.prompt = pending.prompt
        if cache is not None and state is not None:
            set_cache_state(cache, state)
            if pending.known is not None:
                pending.known.cached = True
                remember(cache, state)
        return output

    def _report(self, pending: PendingCall) -> None:
        """Enter in the report what steps inside the decoder did."""
        known, decoder_pass = pending.known, pending.decoder_pass
        if known is None or decoder_pass is None:
            return
        for layer, counts in decoder_pass.counts.items():
            for number, count in zip(pending.order, counts, strict=True):
                self.builder.add_step(known.entry + number, layer, count)
        for layer, members, plan in decoder_pass.applied:
            for row, member in enumerate(members):
                self.builder.add_plan(known.entry + pending.order[member], layer, plan, row)
        self.builder.milliseconds += decoder_pass.milliseconds
        self.builder.inside += decoder_pass.milliseconds

    # What the cache holds

    def _cached_prefix(self, cache: Any, state: CacheState, cached: int, rows: int) -> CachedPrefix:
        """Return what a cache with a compressed beginning holds, for a call of so many rows.

        Raises:
            FoveateError: the cache was changed in a way that its state can't follow.
        """
        state = state.rows(rows)
        tail = cached - state.first.length
        if tail < 0:
            # Decoding with drafts takes back what it has guessed wrong, at first from the prompt's own call.
            state = state.cropped(-tail)
            set_cache_state(cache, state)
            tail = 0
        self._check_layers(cache, cached, state, tail)
        return CachedPrefix(state, cached, tail)

    def _check_layers(self, cache: Any, cached: int, state: CacheState | None, tail: int) -> None:
        """Check that the layers of a cache hold as many tokens as they should, `cached` being those of the first.

        Raises:
            FoveateError: they don't.
        """
        layers = {step.layer for step in self.schedule.layers}
        if state is not None:
            layers |= {each.layer for each in state.layers}
        for layer in layers - {0} if cached else ():
            expected = cached if state is None else state.at(layer).length + tail
            found = int(cache.get_seq_length(layer))
            if found != expected:
                raise FoveateError(
                    f"layer {layer} of the cache holds {found} tokens and should hold {expected}: a call on it failed "
                    "inside the decoder; begin again with an empty cache"
                )

    def _new_tokens(self, call: Call, prefix: CachedPrefix, passed: int, prepared: PreparedInputs | None) -> int:
        """Return how many of the tokens that were passed are new to the conversation.

        `generate`, given the full conversation and a cache, passes what comes after the cache's own length, which is
        shorter than the conversation was: the rest has been seen.

        Raises:
            FoveateError: the attention mask doesn't fit.
        """
        past, cached = prefix.full_length, prefix.cached
        mask = call.get("attention_mask")
        if mask is not None:
            new = mask.shape[1] - past
            # The mask of a caller who counts what the cache holds looks like the one that `generate` passes.
            by_generate = prepared is not None or call.get("input_ids") is None
            if new == passed or (by_generate and mask.shape[1] - cached == passed and 0 < new < passed):
                return new
            raise FoveateError(
                f"the attention mask has {mask.shape[1]} columns; the conversation so far has {past}, and {passed} "
                "tokens came, so it needs one column for each of both"
            )
        excess = past - cached
        # Without `generate`, a caller passes new tokens only.
        if prepared is None or prepared.cache() is not cache_of_call(call) or excess <= 0:
            return passed
        if prepared.taken is not None:
            from_cache = prepared.length - prepared.taken == cached
        else:
            positions = prepared.position_ids
            from_cache = positions is not None and self.family.text_position(positions[..., -passed:]) == cached
        if from_cache and passed <= excess:
            raise FoveateError(
                f"a chunk of {passed} tokens came, all of them among the {past} that the conversation holds already; "
                f"set prefill_chunk_size to more than {excess}, or pass the new tokens alone"
            )
        return passed - excess if from_cache else passed

    # Images

    def _images(self, outputs: Mapping[str, Any], call: Call) -> tuple[KnownImages, Sequence[int]]:
        """Return the images and clips of a call, and their numbers in prompt order; the beams of a sample share them.

        Args:
            outputs: the container of each modality.
            call: what the core is called with.

        Raises:
            FoveateError: the features weren't made under this apply, or a step can't act on them.
        """
        ids: Tensor = call["input_ids"]
        captures: dict[str, Capture | Encoded] = {}
        orders: dict[str, Sequence[int]] = {}
        for name in (each for each in MODALITIES if each in outputs):
            captures[name], orders[name] = self._captured(name, outputs[name], ids)
        layouts = {name: [captures[name].layouts[number] for number in order] for name, order in orders.items()}
        items = [(name, orders[name][number]) for name, number in prompt_order(self.family, ids, layouts)]
        first, *partners = captures.values()
        if partners:
            numbers = {item: number for number, item in enumerate(dict.fromkeys(items))}
            order = [numbers[item] for item in items]
        else:
            numbers, order = {}, [number for _, number in items]
        known = self._known.get(first)
        same = known is not None and len(known.partners) == len(partners)
        same = same and all(one is other for one, other in zip(known.partners, partners))  # pyright: ignore
        if known is None or not same or not _same_question(known, call):
            known = self._known[first] = self._plan_images(captures, list(numbers), order, call)
            known.partners = partners
        return known, order

    def _captured(self, modality: str, output: Any, ids: Tensor) -> tuple[Capture | Encoded, Sequence[int]]:
        """Return what the hooks recorded of a container, and the numbers of its images or clips in prompt order.

        Raises:
            FoveateError: the features weren't made under this apply, or a step can't act on them.
        """
        output = original(output)
        capture: Capture | Encoded | None = images_of(output)
        if isinstance(capture, Encoded):
            capture.check(self.schedule)
        if capture is None or (isinstance(capture, Capture) and not self._encoder_hooks.complete(capture)):
            raise FoveateError(
                "image features came that were not made under this apply, or were taken apart by chunked prefill; pass "
                "pixel_values without chunking, or inputs from foveate.compress without apply"
            )
        if isinstance(capture, Capture):
            note_form(capture, output)
        placeholder = placeholders_of(self.family, modality, ids)
        if len(output.pooler_output) > len(capture.layouts):
            refuse_mixed_images(self._model, len(output.pooler_output), placeholder)
        order = _order_of_images(output.pooler_output, capture, placeholder)
        if isinstance(capture, Capture) and modality == IMAGE:
            return images_of_prompt(self.family, capture, order, ids, self.schedule.pixels)
        return capture, order

    def _plan_images(
        self, captures: Mapping[str, Capture | Encoded], items: Sequence[Item], order: Sequence[int], call: Call
    ) -> KnownImages:
        """Plan images that come for the first time, or with another question than before.

        Args:
            captures: per modality.
            items: the images and clips in prompt order, if there are both.
            order: for each that the prompt holds, its number.
            call: what the core is called with.
        """
        began = self._now()
        ids, mask = call["input_ids"], _new_mask(call)
        parts: dict[str, Encoded] = {}
        for name, capture in captures.items():
            if isinstance(capture, Capture):
                if name == CLIP:
                    time_clips(self.family, capture, call)
                capture = encoded_from(
                    self.family, capture, self.schedule.encoder_signals, bool(self.schedule.features)
                )
            parts[name] = capture
        encoded = joined(parts, items)
        cache = cache_of_call(call)
        if cache is None or not cache.get_seq_length():
            # The clip of a later picture may have come in an earlier turn.
            self.schedule.check_clips(encoded.layouts)
        texts = None
        if self.schedule.reads_text:
            in_prompt = texts_of(self.family, ids, mask, [encoded.layouts[number] for number in order])
            texts = [in_prompt[order.index(number)] for number in range(len(encoded))]
        images = plan_images(self.family, self.schedule, encoded, texts)
        entry = self.builder.add(images, (self._now() - began) * 1e3)
        signals = encoded.signals if self.schedule.layers else {}
        question = None if texts is None else Question(ids, mask)
        return KnownImages(images, entry, signals, encoded.stacked, question=question)

    def _call_with_images(
        self, call: Call, known: KnownImages, order: Sequence[int], prefix: CachedPrefix
    ) -> tuple[Call, PendingCall]:
        """Shorten a call that brings images, at the start of a conversation or later in it."""
        began = self._now()
        family = self.family
        ids: Tensor = call["input_ids"]
        full_mask: Tensor | None = call.get("attention_mask")
        images = [known.images[number] for number in order]
        blocks = [name for name in family.block_types if prefix.cached and call.get(name) is not None]
        if blocks and not family.blocks_after_cache:
            raise FoveateError(
                f"an image in a later turn is not supported for {family.title}: its images look in both directions, "
                "and with a cache the model makes no such mask; pass the full conversation without a cache"
            )
        if prefix.state is None and prefix.cached:
            prefix = self._plain_beginning(call, prefix.cached)
        state, tail, past = prefix.state, prefix.tail, prefix.full_length
        for name in _TYPES:
            # Up to transformers 5.22, `generate` passes the types of the whole conversation.
            if past and call.get(name) is not None and call[name].shape[-1] == past + ids.shape[1]:
                call[name] = call[name][..., past:]
        cut = cut_prompt(
            family,
            ids,
            None if full_mask is None else full_mask[:, past:],
            call.get("position_ids"),
            images,
            start=None if state is None else state.first.following + tail,
        )
        if state is None and call.get("position_ids") is None:
            cut = cut.moved(family.first_position)
        mask, columns, padded = cut.attention_mask, cut.columns, cut.padded
        if state is not None:
            mask = torch.cat([state.first.mask(full_mask, state.full_length, tail), mask], dim=1)
            columns = state.first.extended(state.full_length, tail, columns)
            padded = padded or state.first.padded
        first = LayerState(0, columns, cut.following, padded)
        length = past + ids.shape[1]
        after = CacheState(length, (first,), cut.text_at_end)
        decoder_pass = self._decoder_pass(call, prefix, full_mask, length)
        prompt = None
        wanted: WantedPredictions = getattr(self._local, "wanted", WantedPredictions())
        if decoder_pass is not None:
            prompt = self._uncached(call, known, decoder_pass, wanted)
        call = self._shortened(call, cut, images, known.stacked)
        if decoder_pass is not None:
            types = next((call[name] for name in family.block_types if call.get(name) is not None), None)
            seeing = None if types is None else family.attention_blocks(types)
            decoder_pass.start_prompt(ids, cut, images, order, known.signals, self.schedule, wanted, seeing)
        call["attention_mask"] = mask
        for name in blocks:
            # The model's mask reads them from the first column of the cache on; only new columns look ahead.
            call[name] = torch.nn.functional.pad(call[name], (prefix.cached, 0))
        self.builder.milliseconds += (self._now() - began) * 1e3
        complete = cut.columns.shape == ids.shape and not cut.padded
        restore = None if complete else cut.restore
        return call, PendingCall(restore, prefix, after, decoder_pass, known, order, prompt)

    def _plain_beginning(self, call: Call, cached: int) -> CachedPrefix:
        """Return a conversation that began with plain text, of which every cached place is its own column."""
        ids: Tensor = call["input_ids"]
        mask = call.get("attention_mask")
        columns = torch.arange(cached, device=ids.device).expand(ids.shape[0], -1)
        first = self.family.first_position
        following = columns.new_full((ids.shape[0],), cached + first)
        # A model whose plain positions count padding has no padding in those that `generate` passes.
        if mask is not None and not (self.family.counts_padding and call.get("position_ids") is None):
            following = mask[:, :cached].sum(dim=1) + first
            if call.get("position_ids") is None and bool((following != cached + first).any()):
                raise FoveateError(
                    "an image came after a padded turn of text, and without position_ids nothing tells whether that "
                    "turn's positions counted its padding; pass position_ids with both turns, as generate does"
                )
        return CachedPrefix(CacheState(cached, (LayerState(0, columns, following, padded=False),)), cached)

    def _uncached(
        self, call: Call, known: KnownImages, decoder_pass: DecoderPass, wanted: WantedPredictions
    ) -> UncachedPrompt | None:
        """Let a call without a cache that adds to an earlier one follow its plans; None for a call with a cache."""
        if wanted.labels is not None or cache_of_call(call) is not None or call.get("use_cache"):
            return None
        ids, mask, prompt = call["input_ids"], call.get("attention_mask"), known.prompt
        if prompt is not None and prompt.last == wanted.last and prompt.begins(ids, mask):
            decoder_pass.plans, decoder_pass.made_for = prompt.plans, prompt.ids.shape[1]
            return prompt
        return UncachedPrompt(ids, mask, wanted.last, decoder_pass.plans)

    def _shortened(
        self, call: Call, cut: CutPrompt, images: Sequence[CompressedImage], stacked: frozenset[str]
    ) -> Call:
        """Return the call with the cut prompt and the compressed images."""
        family = self.family
        ids: Tensor = call["input_ids"]
        call = {name: value for name, value in call.items() if name not in visual_inputs(family)}
        call["input_ids"] = cut.input_ids
        call["position_ids"] = cut.position_ids
        call["mm_encoder_outputs"] = containers(family.container, images, stacked)
        for name in self._signature.parameters.keys() - PER_COLUMN.keys() - _CUT:
            value = call.get(name)
            if name.endswith("_ids") and isinstance(value, Tensor) and value.shape == ids.shape:
                raise FoveateError(
                    f"{name} has one value for every token of the prompt, and how it is cut along with the prompt is "
                    f"not known; leave it out if {family.title} can do without"
                )
        for name, fill in _TYPES.items():
            if call.get(name) is not None:
                # Decoding with drafts adds ids to the prompt, and no types.
                drafts = ids.shape[1] - call[name].shape[-1]
                drafted = family.answer_type if name in family.block_types else fill
                call[name] = cut.take(torch.nn.functional.pad(call[name], (0, max(0, drafts)), value=drafted), fill)
        return call

    # Text

    def _call_with_text(self, call: Call, prefix: CachedPrefix) -> tuple[Call, PendingCall]:
        """Fit a call of plain text to a compressed beginning: a step of decoding, or a second turn."""
        state, tail = prefix.state, prefix.tail
        assert state is not None
        first, new = state.first, _passed(call).shape[1]
        full_mask: Tensor | None = call.get("attention_mask")
        start = first.following + tail
        new_mask = None if full_mask is None or new == 1 else full_mask[:, -new:]
        call["position_ids"] = text_positions(start, new, new_mask, self.family.position_axes)
        length = prefix.full_length + new
        after = None
        if full_mask is not None or first.padded:
            call["attention_mask"] = first.mask(full_mask, state.full_length, tail + new)
        if new_mask is not None:
            # Padding inside a later turn doesn't move positions on, so the turn joins the compressed beginning.
            columns = first.extended(state.full_length, tail + new)
            following = start + new_mask.long().sum(dim=1)
            after = CacheState(
                length, (LayerState(0, columns, following, first.padded),), _text_after(state, tail, new_mask)
            )
        decoder_pass = None
        if len(state.layers) > 1:
            decoder_pass = self._decoder_pass(call, prefix, full_mask, length)
            assert decoder_pass is not None
            decoder_pass.start_text(new, new_mask)
        return call, PendingCall(None, prefix, after, decoder_pass)

    def _decoder_pass(
        self, call: Call, prefix: CachedPrefix, full_mask: Tensor | None, length: int
    ) -> DecoderPass | None:
        """Return what happens inside the decoder of a conversation that is then `length` tokens long; None: nothing.

        Raises:
            FoveateError: its layers can't hold different numbers of tokens.
        """
        state = prefix.state
        layers = {0} if state is None else {each.layer for each in state.layers}
        layers |= {step.layer for step in self.schedule.layers}
        if len(layers) == 1:
            return None
        refuse_checkpointing(self.family.decoder_layers, "decoder")
        if getattr(cache_of_call(call), "is_compileable", False):
            raise FoveateError(
                "a static cache has one length for all layers, and steps inside the decoder make them differ; use the "
                "dynamic cache"
            )
        limit = None if self._hides_any else self._reach
        if limit is not None and length > limit:
            raise FoveateError(
                f"the conversation has {length} tokens and this decoder's layers see {limit}; after a step inside "
                "the decoder only masks can tell which, and this attention implementation takes none: use @input, or "
                'load the model with attn_implementation="sdpa"'
            )
        return DecoderPass(self.family, sorted(layers), state, prefix.tail, full_mask, clock=self._now)


# A caller's arguments


def _refuse_blocks(family: Family) -> None:
    """Refuse steps inside a decoder whose images look in both directions, where attention can't be told so.

    Raises:
        FoveateError: they do.
    """
    if family.block_types:
        attention = family.decoder_config._attn_implementation
        raise FoveateError(
            f"images of {family.title} look in both directions, and {attention} attention takes no mask that says so; "
            'load the model with attn_implementation="sdpa", or use @input'
        )


def _refuse_positions(family: Family) -> None:
    """Refuse steps inside a decoder whose attention reads position ids, where gaps in them part packed sequences.

    Raises:
        FoveateError: it does.
    """
    if family.reads_positions:
        attention = family.decoder_config._attn_implementation
        raise FoveateError(
            f"the decoder of this {family.title} reads position ids, and {attention} attention takes gaps between them "
            'for borders of packed sequences; load the model with attn_implementation="sdpa", or use @input'
        )


def _passed(call: Call) -> Tensor:
    """Return what the call brings, ids `(B, S)` or embeddings `(B, S, D)`."""
    ids = call.get("input_ids")
    return call["inputs_embeds"] if ids is None else ids


def _new_mask(call: Call) -> Tensor | None:
    """Return the mask of the new tokens alone, `(B, S)`; None for no mask."""
    mask: Tensor | None = call.get("attention_mask")
    return None if mask is None else mask[:, -_passed(call).shape[1] :]


def _same_question(known: KnownImages, call: Call) -> bool:
    """Return whether images stand with the text that they were planned for, or with more after it and no cache."""
    question, ids = known.question, call["input_ids"]
    if question is None:
        return True
    cached = known.cached or cache_of_call(call) is not None or bool(call.get("use_cache"))
    return not (cached and ids.shape != question.ids.shape) and question.begins(ids, _new_mask(call))


def _last(call: Call, count: int) -> Call:
    """Return the call with only the last `count` columns of whatever has one value per new token."""
    call = dict(call)
    for name in ("input_ids", "position_ids", *_TYPES):
        if call.get(name) is not None:
            call[name] = call[name][..., -count:]
    if call.get("inputs_embeds") is not None:
        call["inputs_embeds"] = call["inputs_embeds"][:, -count:]
    return call


def _check_call(call: Call, brings_images: bool) -> None:
    """Check that a call has its mask and its ids in a form that can be cut.

    Raises:
        FoveateError: it hasn't.
    """
    mask = call.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise FoveateError(
            "apply needs a 2-D attention mask; a prepared one comes from a static cache or from the caller. Use the "
            "dynamic cache, or foveate.compress, whose shorter inputs take any cache"
        )
    for name in PER_COLUMN:
        if call.get(name) is not None:
            check_tensor(name, call[name])
    if brings_images:
        if call.get("input_ids") is None:
            raise FoveateError("images with inputs_embeds are not supported; pass input_ids")
        if mask is not None:
            check_mask(mask)
        positions = call.get("position_ids")
        if positions is not None and positions.shape[-1] < call["input_ids"].shape[1]:
            raise FoveateError(
                f"position_ids are {tuple(positions.shape)} and input_ids {tuple(call['input_ids'].shape)}; they need "
                "one number per token of each prompt"
            )
        refuse_packed(call)


def _check_labels(args: tuple[Any, ...], kwargs: Call) -> None:
    """Check that every token of a prompt has its label, where every token makes a prediction.

    Raises:
        FoveateError: there are more or fewer labels than tokens.
    """
    labels, last = kwargs.get("labels"), kwargs.get("logits_to_keep")
    if labels is not None:
        check_tensor("labels", labels)
    prompt = kwargs.get("input_ids", args[0] if args else None)
    prompt = kwargs.get("inputs_embeds") if prompt is None else prompt
    predicts_all = last is None or (isinstance(last, int) and last == 0)
    if labels is None or prompt is None or not predicts_all:
        return
    if labels.ndim != 2:
        raise FoveateError(f"labels are {tuple(labels.shape)}; they must be (prompts, tokens)")
    if labels.shape[1] != prompt.shape[1]:
        raise FoveateError(
            f"{labels.shape[1]} labels came and {prompt.shape[1]} were expected: one for every token of the prompt, "
            "image placeholders included, and -100 where nothing is to be predicted"
        )


def _order_of_images(features: Sequence[Tensor] | Tensor, capture: Capture | Encoded, placeholder: Tensor) -> list[int]:
    """Return the number of each image that came to the decoder; `generate` repeats a sample's images for its beams.

    Args:
        features: what came, a list or a tensor with a row per image.
        capture: of the images that the encoder saw.
        placeholder: `(B, S)` bool, where a visual token goes.

    Raises:
        FoveateError: other images came than the encoder saw.
    """
    encoded = len(capture.layouts)
    if isinstance(features, Tensor):
        # Beams are new rows of a new tensor; the rows of the prompt show which belong together. Images of different
        # length are joined in one row, so tokens are counted.
        came, tokens = features.shape[:-1].numel(), [layout.placeholders for layout in capture.layouts]
        beams, rest = divmod(came, max(1, sum(tokens)))
        if beams <= 1 and not rest:
            return list(range(encoded))
        order: list[int] = []
        following = 0
        counts = placeholder.sum(dim=1)
        for count in counts[::beams].tolist() if not rest and counts.shape[0] % beams == 0 else ():
            first, need = following, count
            while need > 0 and following < encoded:
                need -= tokens[following]
                following += 1
            order += list(range(first, following)) * beams
        if sum(tokens[image] for image in order) == came:
            return order
        came = len(features)
    else:
        # The same tensors come again. The order in which new ones turn up is the encoder's.
        numbers: dict[int, int] = {}
        order = [numbers.setdefault(id(feature), len(numbers)) for feature in features]
        if len(numbers) == encoded:
            return order
        came = len(numbers)
    raise FoveateError(
        f"the encoder saw {encoded} images and {came} came to the decoder; chunked prefill is not supported under "
        "apply, nor are beams of clips with a version of transformers that loses them"
    )


def _text_after(state: CacheState, tail: int, new_mask: Tensor) -> Tensor:
    """Return how many columns at the end are text in every row, `()` int64, after a later turn of the mask `(B, S)`."""
    width = new_mask.shape[1]
    padding = (new_mask == 0) * torch.arange(1, width + 1, device=new_mask.device)
    text = width - padding.amax()
    # Padding ends what can be taken back: it moved no positions on.
    before = tail if state.text is None else state.text.to(text.device) + tail
    return torch.where(text == width, text + before, text)
