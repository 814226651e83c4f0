"""Steps inside the decoder: fewer columns from layer k on, at prefill and in every later call.

The model's own loop passes the same mask and the same rotary position embeddings to every layer. Before each layer from
k on, both are replaced by what fits the columns that are left there. Layers that hold the same columns form a
`LayerGroup`; what a group needs is made once, when its first layer is reached.

On the way through the layers no value is looked at on the host: how many columns stay is known on both sides, which
ones on the device alone. Only a rule whose count depends on the content makes the host wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.devices import on_cpu
from foveate.engine.columns import Closing, Columns, Host, PackedRun, on_device, pack_positions, text_positions
from foveate.engine.prompt import CompressedImage, CutPrompt, WantedPredictions
from foveate.engine.signals import ImageColumns, LayerInput, answer, read_after_running, reads_text, watched
from foveate.engine.state import CacheState, LayerState
from foveate.engine.step import Arrival, make_plan
from foveate.engine.visibility import Visibility, places_among, visibility
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.layout import Layout, one_row
from foveate.methods import Method
from foveate.plan import Plan
from foveate.schedule import DecoderSteps, ExpectedTokens, Schedule
from foveate.schedule.resizing import dense_slots
from foveate.tokens import DecoderInput, Signal
from foveate.transformers_api import cache_of_call, router_layers


@dataclass
class ImageSpan:
    """Where one image of a call stands in the decoder's columns; kept on the host.

    Attributes:
        row: of the batch.
        places: `(N,)` int64, the places of its content tokens, ascending.
        layout: of these tokens: `seen`, or one row of tokens after an earlier step.
        seen: the layout that the encoder saw.
        full: the layout of the full image.
        expected: what the layout alone says of the tokens that are left.
        dense: `(N,)` int64, the content token of the full image that each one stands for.
        structural: `(2, S)` int64, per structural token that is left its number in `full` and its place.
        slot: `(N,)` int64 on the device, the place of each token in `seen`; None for all, in order.
        signals: the encoder's answers for these tokens, each `(N, ...)`.
        methods: what acts on it, per layer.
        text: how many text tokens of its row, from the first on, are its prompt.
        end: the column of the call that holds its prompt's last token.
        spans: per run, how far it moves the position of what follows it.
        begins: per run, `()` int64 on the device, the position id of its first place; None where nothing packs, or
            where nothing is left of it.
        leader: the image whose plan it takes: itself, except for the beams of one sample.
    """

    row: int
    places: Host
    layout: Layout
    seen: Layout
    full: Layout
    expected: ExpectedTokens
    dense: Tensor
    structural: Host
    slot: Tensor | None
    signals: dict[Signal, Tensor]
    methods: dict[int, Method]
    text: int
    end: int
    spans: list[int]
    begins: list[Tensor | None]
    leader: int

    def move(self, device: torch.device) -> None:
        """Move what goes with its tokens to the device that the decoder's columns are on."""
        self.slot = None if self.slot is None else self.slot.to(device)
        self.signals = {signal: values.to(device) for signal, values in self.signals.items()}

    @property
    def all_places(self) -> Host:
        """Return the places of its content and structural tokens, ascending."""
        if not self.structural.shape[1]:
            return self.places
        return np.sort(np.concatenate([self.places, self.structural[1]]))

    @property
    def needs_slots(self) -> bool:
        """Whether the host must know which of its tokens stay, because other columns stand among them."""
        return bool(self.full.structural) or len(self.full.run_lengths) > 1

    @property
    def run_places(self) -> list[Host]:
        """Return the places of each run, content and structural tokens alike, ascending."""
        if len(self.full.run_lengths) == 1:
            return [self.all_places]
        columns = self.full.places[self.dense].numpy()
        structural = np.array([token.place for token in self.full.structural], dtype=np.int64)
        columns = np.concatenate([columns, structural[self.structural[0]]])
        places = np.concatenate([self.places, self.structural[1]])
        order = places.argsort()
        run_of = self.full.run_of.numpy()[columns[order]]
        return np.split(places[order], np.searchsorted(run_of, np.arange(1, len(self.full.run_lengths))))

    def drop(self, slots: Any) -> Host:
        """Drop all content tokens but those at `slots`, and the structural tokens that go with them; return places."""
        if self.needs_slots:
            self.dense = self.dense[torch.from_numpy(slots)]
            self.structural = self.structural[:, self.full.held(self.dense).numpy()[self.structural[0]]]
        return self.places[slots]


@dataclass
class LayerGroup:
    """The layers from `layer` up to the next group, in one call.

    Attributes:
        layer: the first of them.
        past: what their cache holds of the compressed beginning; None at the start of a conversation.
        reached: whether the call has come to them.
        changed: whether they need anything other than what the model passes them.
        masks: what they take as attention mask, by the kind of the layer.
        rotary: what they take as position embeddings, by the `id` of what the model passes in their place: layers of
            different kinds may be passed different ones.
        columns: the new columns in these layers; None for plain text.
    """

    layer: int
    past: LayerState | None
    reached: bool = False
    changed: bool = False
    masks: dict[str, Any] = field(default_factory=dict)
    rotary: dict[int, Any] = field(default_factory=dict)
    columns: Columns | None = None


@dataclass(frozen=True)
class _PlannedImages:
    """The plan of images that a step took as one batch.

    Attributes:
        members: the numbers of the images.
        plan: theirs.
        places: `(G, N)` int64 on the device, their tokens' places in the flattened columns.
        features: `(G, N, D)`, what arrived.
        known: whether the host knows which tokens stay.
    """

    members: list[int]
    plan: Plan
    places: Tensor
    features: Tensor
    known: bool

    @property
    def merges(self) -> bool:
        """Whether tokens flow together."""
        return self.plan.group is not None or self.plan.mix is not None

    def kept_slots(self) -> list[Any]:
        """Return, per image, the slots that stay; the first ones where only the device knows which."""
        if not self.known:
            return [slice(self.plan.slot.shape[1])] * len(self.members)
        slots = list(self.plan.slot.cpu().numpy())
        if self.plan.valid is None:
            return slots
        return [each[real] for each, real in zip(slots, self.plan.valid.cpu().numpy(), strict=True)]


class DecoderPass:
    """One call on its way through the decoder's layers.

    Args:
        family: of the model.
        layers: where something may change: the layers of the schedule, and those of the cache's state.
        state: what the cache holds of the compressed beginning, with the call's rows; None for nothing.
        tail: plain columns after that beginning.
        full_mask: `(B, S)`, the caller's mask over the full conversation, or None.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        family: Family,
        layers: Sequence[int],
        state: CacheState | None,
        tail: int,
        full_mask: Tensor | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.family = family
        self.state = state
        self.tail = tail
        self.full_mask = full_mask
        self.clock = clock
        self.milliseconds = 0.0
        self.images: list[ImageSpan] = []
        self.counts: dict[int, list[int]] = {}
        """Per layer at which a step has acted, the tokens of each image after it."""
        self.applied: list[tuple[int, list[int], Plan]] = []
        """Each plan that was applied: its layer, and the images that it is for, as a batch."""
        self.plans: list[Plan] = []
        """The plans, in the order in which they were made."""
        self.made_for: int | None = None
        """If `plans` were made for an earlier prompt that this call begins with, its number of columns."""
        self._followed = 0
        self._additions: list[list[Tensor]] = []
        """Per layer, per image `(N, D)`: what is added to its tokens after that layer."""
        self._groups = {
            layer: LayerGroup(layer, None if state is None else state.at(layer)) for layer in sorted({*layers} - {0})
        }
        self._current: LayerGroup | None = None
        self._columns: Columns | None = None
        self._steps: dict[int, Method] = {}
        self._watched: set[int] = set()
        self.recorded: set[int] = set()
        """The layers whose queries and keys `record` is told of while they run."""
        self._inputs: dict[int, LayerInput] = {}
        self._at_start: dict[int, ImageColumns] = {}
        self._text_count = 0
        self._text_mask: Tensor | None = None
        self._kinds = family.layer_kinds()
        self._blocks: Tensor | None = None
        self._width = 0
        self._mask_at_start: Tensor | None = None

    @property
    def _may_hide(self) -> bool:
        """Whether some layer's columns see more, or less, than all earlier ones."""
        return self._blocks is not None or self.family.window is not None or self.family.chunk is not None

    @property
    def first(self) -> int:
        """Return the first layer where something is done."""
        return min(*self._watched, next(iter(self._groups)), len(self.family.decoder_layers))

    @property
    def added(self) -> int:
        """Return after how many layers something is added to visual tokens here, and not by the model's loop."""
        return len(self._additions)

    def restore(self, layer: int | None = None) -> Tensor | None:
        """Return, for each column of the call, the place after a layer that stands for it: `(B, S)`; None for text.

        Without a layer, after the last one; None where no step has acted yet.
        """
        if layer is None:
            return None if self._columns is None else self._columns.restore
        reached = [group.columns for group in self._groups.values() if group.layer <= layer]
        return reached[-1].restore if reached and reached[-1] is not None else None

    def layers_of_routers(self, count: int) -> Sequence[int]:
        """Return the layer that each of `count` router outputs comes from: some decoders have layers without a router.

        Raises:
            FoveateError: nobody knows.
        """
        layers = self.family.decoder_layers
        if count == len(layers):
            return range(count)
        numbers = router_layers(self.family.decoder, layers)
        if len(numbers) != count:
            raise FoveateError(
                f"router logits of {count} layers came, and it isn't known of which of the decoder's {len(layers)}, so "
                "they can't be spread over the prompt; leave output_router_logits out, or use @input"
            )
        return numbers

    # What a call brings

    def start_text(self, count: int, mask: Tensor | None) -> None:
        """Begin a call with `count` columns of text; `mask` `(B, count)` is 0 at padding, None for none."""
        self._text_count, self._text_mask = count, mask

    def start_prompt(
        self,
        ids: Tensor,
        cut: CutPrompt,
        images: Sequence[CompressedImage],
        order: Sequence[int],
        signals: Mapping[Signal, Sequence[Tensor]],
        schedule: Schedule,
        wanted: WantedPredictions,
        blocks: Tensor | None = None,
    ) -> None:
        """Begin a call with a prompt that has images.

        Args:
            ids: `(B, S)`, the prompt before the cut.
            cut: what is left of it at layer 0.
            images: in prompt order.
            order: the number of each image among those that were encoded; beams bring the same number again.
            signals: the encoder's answers for each image of these numbers, `(N, ...)` over the full image.
            schedule: what acts on them here, and what has acted before.
            wanted: which predictions the caller wants.
            blocks: `(B, M)` int64, the block of columns of the cut prompt that see each other, -1 for none; None for
                no blocks.

        Raises:
            FoveateError: a step won't find what it needs.
            KeepError: a step would keep more than arrives.
        """
        self._steps = {step.layer: step.method for step in schedule.layers}
        needs = [(step.method.needs, step.layer) for step in schedule.layers if not step.method.keeps_all()]
        self._watched = {layer for signals, at in needs for layer in watched(signals, at)}
        self.recorded = {layer for signals, at in needs for layer in read_after_running(signals, at)}
        rows, width = cut.columns.shape
        self._width, self._blocks, self._mask_at_start = width, blocks, cut.attention_mask
        index, is_visual = cut.on_host
        lengths = (index >= 0).sum(axis=1).tolist()
        positions = cut.position_ids.view(self.family.position_axes, rows, width)
        self._columns = Columns(cut.columns, lengths, cut.restore, positions, cut.following)
        ends = wanted.prompt_ends(cut.visual_before, [image.before for image in images])
        steps = self._place_images(index, is_visual, images, ends, ids.shape[1] - 1, schedule)
        for number, (span, image) in enumerate(zip(self.images, images, strict=True)):
            answers = {signal: values[order[number]] for signal, values in signals.items()}
            slot = span.slot
            span.signals = answers if slot is None else {signal: each[slot] for signal, each in answers.items()}
            if any(method.positions == "pack" for method in self._steps.values()) and image.after:
                if image.leads_text:
                    raise FoveateError(
                        f"image {number} (counted from 0) has more frames than rows or columns, and position ids of "
                        "such an image can't be packed inside the decoder; write positions=keep, or use @input"
                    )
                begun = 0
                for run, places in enumerate(span.run_places):
                    if len(places):
                        relative = int(image.positions[0, begun])
                        span.begins[run] = positions[0, span.row, int(places[0])] - relative
                        begun += len(places)
        if len(set(order)) < len(order):
            # What beams have added since doesn't part them.
            self._choose_leaders(ids[:, : self.made_for], order)
        self._check_steps(steps, lengths)
        if 0 in self._watched:
            self._at_start = {number: self._image_columns([number]) for number in range(len(images))}

    def _place_images(
        self,
        index: Host,
        is_visual: Host,
        images: Sequence[CompressedImage],
        ends: Sequence[int],
        last: int,
        schedule: Schedule,
    ) -> list[DecoderSteps]:
        """Note where each image stands; return what is expected to act on it.

        Args:
            index: `(B, M)`, the column of the call that each place holds.
            is_visual: `(B, M)`, whether it holds a visual token.
            images: in prompt order.
            ends: per image the column of its prompt's last token, as the wanted predictions show it.
            last: the last column of the call.
            schedule: the steps.
        """
        row_of, place_of = is_visual.nonzero()
        steps: list[DecoderSteps] = []
        after = 0
        for number, image in enumerate(images):
            first, after = after, after + image.after
            places = place_of[first:after]
            row, end = int(row_of[first]) if len(places) else 0, ends[number]
            if len(places) and end < index[row, places[-1]]:
                # The wanted predictions begin before the image or in it, so they don't show where the prompt ends.
                end = last
            layout, slot, dense = image.grid, None, torch.arange(image.grid.content)
            if image.plan is not None:
                slot = image.plan.slot[0]
                layout, dense = one_row(len(slot)), slot.cpu()
            expected = schedule.decoder_steps(
                image.grid, None if slot is None else len(slot), len(self.family.decoder_layers)
            )
            steps.append(expected)
            dense = dense_slots(image.grid, image.layout)[dense]
            content, structural = _parted(image, places, dense)
            # Columns ascend after the padding, which is -1.
            begin, stop = np.searchsorted(index[row], [0, end + 1])
            text = int(stop - begin - is_visual[row, begin:stop].sum())
            self.images.append(
                ImageSpan(
                    row=row,
                    places=content,
                    layout=layout,
                    seen=image.grid,
                    full=image.layout,
                    expected=expected.entering,
                    dense=dense,
                    structural=structural,
                    slot=slot,
                    signals={},
                    methods=expected.methods,
                    text=text,
                    end=end,
                    spans=list(image.spans),
                    begins=[None] * len(image.spans),
                    leader=number,
                )
            )
        return steps

    def _check_steps(self, steps: Sequence[DecoderSteps], lengths: Sequence[int]) -> None:
        """Check that each step will find what it needs: once a layer has run, a cache holds what it read.

        Args:
            steps: what is expected to act on each image.
            lengths: columns of each row.

        Raises:
            FoveateError: a step reads text where there is none, or leaves nothing of a row.
        """
        gone: dict[int, list[tuple[int, int]]] = {}
        for image, expected in zip(self.images, steps, strict=True):
            if not image.text:
                for layer in expected.reached_layers:
                    if any(map(reads_text, image.methods[layer].needs)):
                        raise FoveateError(
                            f"{self._steps[layer]} at layer {layer} reads the question, and an image came without any "
                            "text; put the question into the prompt"
                        )
            if expected.reached_layers and not expected.kept:
                gone.setdefault(image.row, []).append((expected.reached_layers[-1], len(image.all_places)))
        for row, images in gone.items():
            if sum(count for _, count in images) == lengths[row]:
                raise self._empty_row(max(layer for layer, _ in images))

    def _empty_row(self, layer: int) -> FoveateError:
        return FoveateError(
            f"{self._steps[layer]} at layer {layer} leaves a row without any token: it has no text; put some into the "
            "prompt, or keep some visual tokens"
        )

    def _choose_leaders(self, ids: Tensor, order: Sequence[int]) -> None:
        """Let the same image at the same place of the same prompt share one plan, whatever rounding does."""
        prompts = [tuple(row) for row in ids.tolist()]
        leaders: dict[tuple[Any, ...], int] = {}
        before: dict[int, int] = {}
        for number, image in enumerate(self.images):
            place = before[image.row] = before.get(image.row, -1) + 1
            image.leader = leaders.setdefault((order[number], place, prompts[image.row]), number)

    # At a layer

    def before_decoder(self, call: dict[str, Any]) -> dict[str, Any]:
        """Take out of the decoder's arguments what its loop would add at columns that are gone by then."""
        if not self._steps:
            return call
        without, additions = self.family.take_additions(call)
        if min(self._steps) >= len(additions):
            return call
        sizes = [len(image.places) for image in self.images]
        self._additions = [list(level.split(sizes)) for level in additions]
        return without

    def before_layer(self, layer: int, hidden: Tensor, call: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return what a layer reads in place of `hidden` `(B, S, D)` and of the arguments that the model passes it."""
        if 0 < layer <= self.added:
            hidden = self.with_addition(layer - 1, hidden)
        group = self._groups.get(layer)
        if group is not None:
            if layer in self._steps and any(len(image.places) for image in self.images):
                hidden = self._run_step(layer, hidden, partial(self._arriving, group, hidden, call))
            if layer - 1 in self._inputs:
                self._inputs[layer - 1].recorded.clear()
            self._prepare(group)
            self._current = group
        group = self._current
        if group is not None and group.changed:
            given = id(call.get("position_embeddings"))
            if given not in group.rotary:
                group.rotary[given] = self._rotary(group.past, call, hidden, layer)
            kind = self._kinds[layer]
            if kind not in group.masks:
                group.masks[kind] = self._layer_mask(group, hidden, call, layer)
            call = {**call, "attention_mask": group.masks[kind], "position_embeddings": group.rotary[given]}
            if call.get("position_ids") is not None:
                # With position embeddings given, most attention only looks here for packed sequences, and would take
                # gaps for their borders.
                call["position_ids"] = self._position_ids(group.past) if self.family.reads_positions else None
            if self._columns is not None and (source := self._columns.source) is not None:
                beside = [name for name in self.family.column_inputs if call.get(name) is not None]
                call |= {name: _taken_at(call[name], source) for name in beside}
        if layer in self._watched:
            self._inputs[layer] = self._layer_input(layer, hidden, call, call["position_embeddings"])
        return hidden, call

    def record(self, layer: int, name: str, output: Tensor) -> None:
        """Keep what a module of `family.decoder_projections(layer)` made, until the step after the layer has acted."""
        if layer in self._inputs:
            self._inputs[layer].recorded[name] = self.family.recorded(output)

    def with_addition(self, layer: int, hidden: Tensor) -> Tensor:
        """Return a layer's output `(B, S, D)` with what is added to it before the next one reads it."""
        rows, width, _ = hidden.shape
        places = on_device(np.concatenate([image.row * width + image.places for image in self.images]), hidden.device)
        values = torch.cat(self._additions[layer]).to(hidden.device, hidden.dtype)
        return hidden.flatten(0, 1).index_add(0, places, values).view(rows, width, -1)

    def _arriving(self, group: LayerGroup, hidden: Tensor, call: dict[str, Any]) -> LayerInput:
        """Return what the first layer of a group would read if its step did nothing."""
        return self._layer_input(group.layer, hidden, call, self._rotary(group.past, call, hidden, group.layer))

    def _layer_input(self, layer: int, hidden: Tensor, call: dict[str, Any], rotary: Any) -> LayerInput:
        """Return what a layer reads, for signals."""
        past = None if self.state is None else self.state.at(layer)
        mask, seen = self._mask(past), self._visibility(past, layer)
        positions = self._position_ids(past)
        columns = torch.arange(mask.shape[1] - hidden.shape[1], mask.shape[1], device=hidden.device)[None]
        factor = self.family.query_factor(layer, positions, columns) if positions.ndim == 2 else None
        tables = self.family.cos_sin(rotary)
        return LayerInput(
            self.family, layer, hidden, tables, mask, cache_of_call(call), visibility=seen, query_factor=factor
        )

    def _prepare(self, group: LayerGroup) -> None:
        """Note what the layers of a group hold, and whether it is what layer 0 holds."""
        group.reached = True
        group.columns = columns = self._columns
        past = group.past
        group.changed = past is not (None if self.state is None else self.state.first)
        if columns is not None:
            group.changed |= columns.source is not None

    def _layer_mask(self, group: LayerGroup, hidden: Tensor, call: dict[str, Any], layer: int) -> Any:
        """Make what a layer of a group takes as attention mask; all layers of its kind take the same."""
        past, columns = group.past, self._columns
        padded = (past is not None and past.padded) or (columns is not None and columns.padded)
        seen = self._visibility(past, layer)
        # Where the model found that nothing needs to be hidden, nothing needs to be hidden among fewer columns either.
        if seen is None and call.get("attention_mask") is None and not padded:
            return None
        beyond, within = (None, None) if seen is None else (seen.beyond, seen.within)
        return self.family.causal_mask(hidden, self._mask(past), cache_of_call(call), layer, beyond, within)

    def _visibility(self, past: LayerState | None, layer: int) -> Visibility | None:
        """Return what the columns of a layer see, where that is not simply all earlier ones."""
        if not self._may_hide:
            return None
        first, columns, blocks = None if self.state is None else self.state.first, self._columns, self._blocks
        if columns is None:
            assert past is not None
            new, (rows, device) = self._text_count, (past.columns.shape[0], past.columns.device)
        else:
            new, (rows, device) = self._width, (columns.index.shape[0], columns.index.device)
        if columns is None or columns.source is None:
            places = torch.arange(new, device=device).expand(rows, -1)
        else:
            places = columns.source % self._width
        if blocks is not None:
            blocks = blocks.to(device).gather(1, places)
        before = 0 if first is None else first.length + self.tail
        places = places + before
        if past is not None:
            assert first is not None
            assert self.state is not None
            full = self.state.full_length
            held = places_among(first.extended(full, self.tail), past.extended(full, self.tail))
            places = torch.cat([held, places], dim=1)
            if blocks is not None:
                blocks = torch.nn.functional.pad(blocks, (held.shape[1], 0), value=-1)
        return visibility(self.family, layer, places, before + new, self._starts(first), blocks)

    def _starts(self, first: LayerState | None) -> Tensor | None:
        """Return the first column of layer 0 that is no padding, `(B,)` int64; None where nobody asks."""
        if self.family.chunk is None:
            return None
        mask = self._mask_at_start
        if first is not None:
            assert self.state is not None
            mask = first.mask(self.full_mask, self.state.full_length, self.tail)
        assert mask is not None
        return (mask.cumsum(dim=1) == 0).sum(dim=1)

    def _rotary(self, past: LayerState | None, call: dict[str, Any], hidden: Tensor, layer: int) -> Any:
        """Return position embeddings of the new columns, in layers that hold `past`."""
        columns = self._columns
        if (past is not None and past.packed) or (columns is not None and columns.packed):
            return self.family.rotary(hidden, self._position_ids(past), layer)
        if columns is None or columns.source is None:
            return call["position_embeddings"]
        source, given = columns.source, call["position_embeddings"]
        return (
            _taken_at(given, source) if isinstance(given, Tensor) else tuple(_taken_at(each, source) for each in given)
        )

    def _mask(self, past: LayerState | None) -> Tensor:
        """Return the mask over what layers hold and the new columns: `(B, P + M)` int64."""
        full_length = 0 if self.state is None else self.state.full_length
        if self._columns is None:
            assert past is not None
            return past.mask(self.full_mask, full_length, self.tail + self._text_count)
        new = (self._columns.index >= 0).long()
        return new if past is None else torch.cat([past.mask(self.full_mask, full_length, self.tail), new], dim=1)

    def _moved(self, past: LayerState | None) -> Tensor | int:
        """Return how far earlier turns have moved positions in these layers against layer 0: `(B,)`."""
        if past is None or not past.packed:
            return 0
        assert self.state is not None
        return past.following - self.state.first.following

    def _position_ids(self, past: LayerState | None) -> Tensor:
        """Return position ids of the new columns in these layers: `(B, M)`, or `(axes, B, M)`."""
        axes = self.family.position_axes
        if self._columns is None:
            assert past is not None
            return text_positions(past.following + self.tail, self._text_count, self._text_mask, axes)
        moved = self._moved(past)
        positions = self._columns.positions
        if isinstance(moved, Tensor):
            positions = positions + moved[:, None]
        return positions[0] if axes == 1 else positions

    # A step

    def _run_step(self, layer: int, hidden: Tensor, here: Callable[[], LayerInput]) -> Tensor:
        """Plan the images and shorten the columns: the hidden states `(B, M, D)` before a layer -> `(B, M', D)`.

        `here` makes what methods may ask of this layer.
        """
        if all(image.methods[layer].keeps_all(len(image.places)) for image in self.images if len(image.places)):
            self._keep_all(layer, hidden.device)
            return hidden
        began = self.clock()
        planned = [self._plan_images(layer, members, hidden, here) for members in self._batches(layer)]
        packs = self._steps[layer].positions == "pack"
        runs = [image.run_places if packs else [] for image in self.images]
        keep, staying = self._kept(planned)
        closing = Closing.of(keep)
        if not closing.lengths.min():
            raise self._empty_row(layer)
        # Where each run ended, for runs of which nothing is left.
        ends: dict[int, list[int | None]] = {}
        for number in staying if packs else ():
            landing = closing.landing[self.images[number].row]
            ends[number] = [int(landing[run[-1]]) + 1 if len(run) else None for run in runs[number]]
        complete = {number for number, places in staying.items() if len(places) == len(self.images[number].places)}
        hidden = self._shorten(layer, hidden, planned, staying, closing)
        for number, places in staying.items():
            image = self.images[number]
            image.places = closing.landing[image.row, places]
            image.structural[1] = closing.landing[image.row, image.structural[1]]
            image.layout = one_row(len(places))
            image.expected = image.expected.after(image.methods[layer])
        if packs:
            self._pack(ends, complete)
        self.counts[layer] = [len(image.places) + image.structural.shape[1] for image in self.images]
        self.applied += [(layer, group.members, group.plan) for group in planned]
        self.milliseconds += (self.clock() - began) * 1e3
        return hidden

    def _keep_all(self, layer: int, device: torch.device) -> None:
        """Note that a step has kept every token of every image; no column moves."""
        for number, image in enumerate(self.images):
            count = len(image.places)
            if not count:
                continue
            plan = Plan.complete(1, count, device)
            image.slot = plan.slot[0] if image.slot is None else image.slot
            image.layout = one_row(count)
            image.expected = image.expected.after(image.methods[layer])
            self.applied.append((layer, [number], plan))
        self.counts[layer] = [len(image.places) + image.structural.shape[1] for image in self.images]

    def _batches(self, layer: int) -> list[list[int]]:
        """Return the numbers of the images that can be planned as one batch."""
        batches: dict[Any, list[int]] = {}
        for number, image in enumerate(self.images):
            if not len(image.places):
                continue
            method = image.methods[layer]
            # Texts of different length can't be one batch without padding, which a method would have to know about.
            text = image.text if any(map(reads_text, method.needs)) else 0
            at_start = self._at_start[number].visual.shape[1] if self._at_start else 0
            layouts = (image.layout, image.seen, image.expected, image.full, image.slot is None)
            batches.setdefault((method, *layouts, text, at_start), []).append(number)
        return list(batches.values())

    def _plan_images(
        self, layer: int, members: list[int], hidden: Tensor, here: Callable[[], LayerInput]
    ) -> _PlannedImages:
        """Plan images that make one batch."""
        images = [self.images[number] for number in members]
        width, device = hidden.shape[1], hidden.device
        for image in images:
            image.move(device)
        places = on_device(np.stack([image.row * width + image.places for image in images]), device)
        features = hidden.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)
        plan = self._plan(images[0].methods[layer], members, features, here)
        known = on_cpu(features) or plan.valid is not None or images[0].needs_slots
        return _PlannedImages(members, plan, places, features, known)

    def _plan(self, method: Method, members: Sequence[int], features: Tensor, here: Callable[[], LayerInput]) -> Plan:
        """Plan features `(G, N, D)` of images of one layout; the beams of one sample share a plan."""
        own = [position for position, number in enumerate(members) if self.images[number].leader == number]
        index = None
        if len(own) < len(members):
            position_of = {members[position]: order for order, position in enumerate(own)}
            led = np.array([position_of[self.images[number].leader] for number in members])
            index = on_device(led, features.device)
            features = features[on_device(np.array(own), features.device)]
        if self.made_for is not None:
            self._followed += 1
            plan = self.plans[self._followed - 1]
        else:
            plan = self._make_plan(method, [members[position] for position in own], features, here)
            self.plans.append(plan)
        return plan if index is None else plan.rows(index)

    def _make_plan(
        self, method: Method, members: Sequence[int], features: Tensor, here: Callable[[], LayerInput]
    ) -> Plan:
        """Let the method plan: the encoder's signals are at hand, the decoder's are made if it asks for any."""
        images = [self.images[number] for number in members]
        slots = [image.slot for image in images if image.slot is not None]
        tiles = images[0].expected.tiles
        counts = None if tiles is None else tuple(tile.content for tile in tiles)
        arrival = Arrival(images[0].seen, torch.stack(slots) if slots else None, counts)

        def signals() -> dict[Signal, Tensor]:
            found = {signal: torch.stack([image.signals[signal] for image in images]) for signal in images[0].signals}
            inside = [need for need in method.needs if need not in found]
            return found | self._answers(inside, members, here()) if inside else found

        return make_plan(method, features, arrival, signals)

    def _answers(self, needs: Sequence[Signal], members: Sequence[int], here: LayerInput) -> dict[Signal, Tensor]:
        """Answer the decoder's signals for images with texts of one length."""
        columns = self._image_columns(members, any(map(reads_text, needs)))
        embedded = None
        if any(isinstance(need, DecoderInput) for need in needs):
            embedded = self._inputs[0].hidden, ImageColumns.joined([self._at_start[number] for number in members])
        previous = self._inputs.get(here.layer - 1)
        return {need: answer(need, columns, here, previous, embedded) for need in needs}

    def _image_columns(self, members: Sequence[int], with_text: bool = True) -> ImageColumns:
        """Return where images stand in the columns now, and the text of their prompts.

        Texts must be of one length, so they are left out where no method reads them.
        """
        columns = self._columns
        assert columns is not None
        device = columns.index.device
        images = [self.images[number] for number in members]
        text = [np.empty(0, dtype=np.int64) for _ in images]
        if with_text:
            is_text = columns.occupied()
            for image in self.images:
                is_text[image.row, image.all_places] = False
            text = [np.flatnonzero(is_text[image.row])[: image.text] for image in images]
        rows = on_device(np.array([image.row for image in images]), device)
        ends = on_device(np.array([image.end for image in images]), device)
        visual = on_device(np.stack([image.places for image in images]), device)
        return ImageColumns(rows, visual, on_device(np.stack(text), device), columns.restore[rows, ends])

    def _kept(self, planned: Sequence[_PlannedImages]) -> tuple[Host, dict[int, Host]]:
        """Return which places stay, `(B, M)` bool, and per planned image the places of its tokens that stay.

        On the host. If only the device knows which tokens stay, they count as the first ones of each image: their
        number is what matters here.
        """
        assert self._columns is not None
        keep = self._columns.occupied()
        staying: dict[int, Host] = {}
        for group in planned:
            for number, slots in zip(group.members, group.kept_slots(), strict=True):
                image = self.images[number]
                keep[image.row, image.all_places] = False
                staying[number] = image.drop(slots)
                keep[image.row, image.structural[1]] = True
                keep[image.row, staying[number]] = True
        return keep, staying

    def _shorten(
        self,
        layer: int,
        hidden: Tensor,
        planned: Sequence[_PlannedImages],
        staying: Mapping[int, Host],
        closing: Closing,
    ) -> Tensor:
        """Shorten hidden states `(B, M, D)` and the columns by what stays; merge what flows together."""
        columns = self._columns
        assert columns is not None
        device = hidden.device
        rows, width, _ = hidden.shape
        narrow = closing.source.shape[1]
        index, real = on_device(closing.source, device), on_device(closing.real, device)
        known = all(group.known for group in planned)
        merged: list[tuple[Tensor, Tensor]] = []
        for group in planned:
            plan = group.plan
            self._move_along(layer, group.members, plan)
            if known and not group.merges:
                continue
            landed = [
                self.images[number].row * narrow + closing.landing[self.images[number].row, staying[number]]
                for number in group.members
            ]
            target = on_device(np.concatenate(landed), device)
            if not known and plan.valid is None:
                kept = group.places.gather(1, plan.slot).flatten()
                index = index.flatten().index_copy(0, target, kept).view(rows, narrow)
            if group.merges:
                values = plan.apply(group.features)
                merged.append((target, values.flatten(0, 1) if plan.valid is None else values[plan.valid]))
        short = hidden.flatten(0, 1).index_select(0, index.flatten())
        for target, values in merged:
            short = short.index_copy(0, target, values)
        landing = on_device(closing.landing.clip(min=0), device) if known else _landing(index, real, (rows, width))
        self._columns = columns.taken(index, real, landing, closing.lengths.tolist())
        return short.view(rows, narrow, -1)

    def _move_along(self, layer: int, members: Sequence[int], plan: Plan) -> None:
        """Move by a plan what goes with each token: encoder signals, and what is still to be added to it."""
        for level in self._additions[layer:]:
            added = plan.apply(torch.stack([level[number] for number in members]).to(plan.slot.device))
            for position, number in enumerate(members):
                level[number] = added[position] if plan.valid is None else added[position][plan.valid[position]]
        for position, number in enumerate(members):
            image = self.images[number]
            slot = plan.slot[position] if plan.valid is None else plan.slot[position][plan.valid[position]]
            image.signals = {signal: value[slot] for signal, value in image.signals.items()}
            image.slot = slot if image.slot is None else image.slot[slot]

    def _pack(self, ends: Mapping[int, Sequence[int | None]], complete: Collection[int]) -> None:
        """Give images position ids without gaps; what follows moves up.

        Args:
            ends: per image that a step acted on, the place after the last one of each run; None if it was gone before.
            complete: numbers of images of which it has left out nothing.
        """
        assert self._columns is not None
        runs: list[PackedRun] = []
        for number, image in enumerate(self.images):
            gone = ends.get(number, [None] * len(image.spans))
            for places, span, begin, end in zip(image.run_places, image.spans, image.begins, gone, strict=True):
                runs.append(PackedRun(image.row, places, span, begin, end, number in complete))
        self._columns, packed = pack_positions(self._columns, runs)
        moved = iter(packed)
        for image in self.images:
            own = list(islice(moved, len(image.spans)))
            image.spans, image.begins = [run.span for run in own], [run.begin for run in own]

    # After the last layer

    def check_reached(self) -> None:
        """Check that every step has acted.

        Raises:
            FoveateError: the layers ran without their hooks.
        """
        missed = [group.layer for group in self._groups.values() if not group.reached]
        if missed:
            raise FoveateError(
                f"decoder layer {missed[0]} ran without its step: the model was compiled by an earlier call, and "
                "what was compiled doesn't know the step; call torch.compiler.reset() and open foveate.apply again"
            )

    def state_after(self, first: CacheState) -> CacheState:
        """Return what the cache holds when the call is done; `first` is the same for layer 0 alone."""
        layers = list(first.layers)
        past_length = 0 if self.state is None else self.state.full_length
        for group in self._groups.values():
            past, columns = group.past, group.columns
            if columns is None:
                assert past is not None
                assert self._text_mask is not None
                index = past.extended(past_length, self.tail + self._text_count)
                following = past.following + self.tail + self._text_mask.long().sum(dim=1)
                layers.append(replace(past, layer=group.layer, columns=index, following=following))
            elif past is None:
                layers.append(LayerState(group.layer, columns.index, columns.following, columns.padded, columns.packed))
            else:
                index = past.extended(past_length, self.tail, columns.index)
                following = columns.following + self._moved(past)
                padded, packed = past.padded or columns.padded, past.packed or columns.packed
                layers.append(LayerState(group.layer, index, following, padded, packed))
        return replace(first, layers=tuple(layers))


def _parted(image: CompressedImage, places: Host, dense: Tensor) -> tuple[Host, Host]:
    """Part an image's places: those of content tokens `(N,)`; numbers and places of structural tokens `(2, S)`."""
    if not image.layout.structural:
        return places, np.empty((2, 0), dtype=np.int64)
    content = torch.isin(image.slot, image.layout.places[dense]).numpy()
    numbers = image.layout.held(dense).nonzero().squeeze(1).numpy()
    return places[content], np.stack([numbers, places[~content]])


def _landing(index: Tensor, real: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return where each old place lands, from the flattened old places that stay: `(B, M')` -> `(B, M)` int64."""
    rows, width = shape
    empty = ~real
    count = index.new_zeros(rows * width + 1)
    count.scatter_(0, index.masked_fill(empty, rows * width).flatten(), 1)
    padding = empty.sum(dim=1, keepdim=True)
    return (count[:-1].view(rows, width).cumsum(dim=1) - 1 + padding).clamp(min=0)


def _taken_at(table: Tensor, places: Tensor) -> Tensor:
    """Take values of columns `(B, M0, d)`, or `(axes, B, M0, d)`, at places `(B, M)` of the flattened columns."""
    wide = table.expand(*table.shape[:-3], places.shape[0], *table.shape[-2:])
    return wide.flatten(-3, -2)[..., places, :]
