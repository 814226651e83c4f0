"""Plans inside the decoder: fewer columns from layer k on, at prefill and at every later step.

The model's own loop passes the same mask and the same rotary position embeddings to every layer. Pre-hooks on the
layers from k on replace them by what fits the columns that are left there. Layers that hold the same columns are a
`_Part`; what a part needs is made once, when its first layer is reached.

On the way down no value is looked at on the host: how many columns stay is known on both sides, which ones on the
device alone. Only a rule whose count depends on the content makes the host wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foveate.engine.compress import text_positions
from foveate.engine.cut import Cut
from foveate.engine.planning import ImagePlan
from foveate.engine.signals import Asked, LayerInput, Places, answer, reads_text, watched
from foveate.engine.state import CacheState, Held
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.methods import Method
from foveate.methods.tiles import plan_of
from foveate.plan import Plan
from foveate.schedule import DecoderSteps as Foreseen
from foveate.schedule import ExpectedTokens as Remaining
from foveate.schedule import Schedule
from foveate.schedule.resizing import dense_slots
from foveate.tokens import DecoderInput, Layout, Origin, Segment, Signal, Signals, VisualTokens
from foveate.transformers_api import cache_of_call


@dataclass
class Standing:
    """Where one image of a call stands in the decoder's sequence; kept on the host.

    Attributes:
        row: of the batch.
        places: `(N,)` int64, the columns of its content tokens, ascending.
        layout: of these tokens: `whole`, or a strip behind an earlier step.
        whole: the layout that the encoder saw.
        remaining: what is left of it, as the layout tells.
        dense: `(N,)` int64, the content token of the full image that each one stands for.
        full: the layout of the full image.
        marks: per structural token that is left, its number in `full` and its column: `(2, S)` int64.
        slot: `(N,)` int64 on the device, the place of each token in `whole`; None: all of them, in order.
        signals: what the encoder said of these tokens, each `(N, ...)`.
        methods: what acts on it, per layer.
        text: how many text tokens of its row, from the first on, are its prompt.
        last: the column of the call that holds its prompt's last token.
        span: how far the image moves the position of what follows it.
        begin: `()` int64 on the device, the position id of its first place in the whole image.
        leader: the image whose plan it takes: itself, but for the beams of one sample.
    """

    row: int
    places: npt.NDArray[np.int64]
    layout: Layout
    whole: Layout
    remaining: Remaining
    dense: Tensor
    full: Layout
    marks: npt.NDArray[np.int64]
    slot: Tensor | None
    signals: dict[Signal, Tensor]
    methods: dict[int, Method]
    text: int
    last: int
    span: int
    begin: Tensor | None
    leader: int

    @property
    def every(self) -> npt.NDArray[np.int64]:
        """The columns of its content and structural tokens, ascending."""
        if not self.marks.shape[1]:
            return self.places
        return np.sort(np.concatenate([self.places, self.marks[1]]))


@dataclass
class _Line:
    """The new columns of a call as they are in the layers that are being passed.

    Attributes:
        columns: `(B, M)` int64, the column of the call that each place holds; -1 = padding made here.
        lengths: places that hold something, per row; they stand at its end.
        restore: `(B, S)` int64, for each column of the call the place that stands for it.
        positions: `(axes, B, M)` int64, position ids; what earlier turns have moved is not in them.
        following: `(B,)` int64, the position id behind the line, likewise.
        taken: `(B, M)` int64, the place of layer 0's flattened line that each one comes from; None means its own.
        packed: whether a step inside the decoder has moved positions.
    """

    columns: Tensor
    lengths: list[int]
    restore: Tensor
    positions: Tensor
    following: Tensor
    taken: Tensor | None = None
    packed: bool = False

    @property
    def padded(self) -> bool:
        """Whether rows of different length had to be padded."""
        return min(self.lengths) != self.columns.shape[1]


@dataclass
class _Part:
    """The layers from `layer` up to the next part, in one call.

    Attributes:
        layer: the first of them.
        past: what their cache holds of the compressed beginning; None at the start of a conversation.
        changed: whether they need anything else than the model passes them.
        mask: what they take as attention mask.
        rotary: what they take as position embeddings, by the number (`id`) of what the model passes in their place:
            layers of different kinds may be passed different ones.
        line: the new columns as they are in these layers; None for plain text.
    """

    layer: int
    past: Held | None
    changed: bool = False
    mask: Any = None
    rotary: dict[int, Any] = field(default_factory=dict)
    line: _Line | None = None


class Descent:
    """One call on its way down the decoder's layers.

    Args:
        family: of the model.
        layers: where something may change: the layers of the schedule, and those of the cache's state.
        state: what the cache holds of the compressed beginning, its rows already those of the call; None for nothing.
        tail: plain columns behind that beginning.
        whole: `(B, S)`, the caller's mask over the whole conversation, or None.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        family: Family,
        layers: Sequence[int],
        state: CacheState | None,
        tail: int,
        whole: Tensor | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.family = family
        self.state = state
        self.tail = tail
        self.whole = whole
        self.clock = clock
        self.milliseconds = 0.0
        self.images: list[Standing] = []
        self.counts: dict[int, list[int]] = {}
        """Per layer at which a step has acted, the content tokens of each image behind it."""
        self.plans: list[Plan] = []
        """The plans, in the order in which they were made."""
        self.made_for: int | None = None
        """How many columns the prompt had that `plans` were made for, if they are there already; the call begins with
        it, and they are followed."""
        self._followed = 0
        self._additions: list[list[Tensor]] = []
        """Per layer, per image `(N, D)`: what is added to its tokens behind that layer."""
        self._parts = {
            layer: _Part(layer, None if state is None else state.at(layer)) for layer in sorted({*layers} - {0})
        }
        self._current: _Part | None = None
        self._line: _Line | None = None
        self._steps: dict[int, Method] = {}
        self._watched: set[int] = set()
        self._inputs: dict[int, LayerInput] = {}
        self._at_start: dict[int, Places] = {}
        self._fresh = 0
        self._marks: Tensor | None = None

    @property
    def first(self) -> int:
        """The first layer where something is done."""
        return min(*self._watched, next(iter(self._parts)), len(self.family.decoder_layers))

    @property
    def added(self) -> int:
        """Behind how many layers something is added to visual tokens here, and not by the model's loop."""
        return len(self._additions)

    def restore(self, layer: int | None = None) -> Tensor | None:
        """For each column of the call the place behind a layer that stands for it, `(B, S)`; None for text.

        Without a layer, behind the last one; None where nothing has acted up to there.
        """
        if layer is None:
            return None if self._line is None else self._line.restore
        lines = [part.line for part in self._parts.values() if part.layer <= layer]
        return lines[-1].restore if lines and lines[-1] is not None else None

    # What a call brings

    def text(self, count: int, marks: Tensor | None) -> None:
        """The call brings `count` columns of text; `marks` `(B, count)` is 0 at padding among them, None for none."""
        self._fresh, self._marks = count, marks

    def prompt(
        self,
        ids: Tensor,
        cut: Cut,
        visual: Tensor,
        images: Sequence[ImagePlan],
        order: Sequence[int],
        signals: Mapping[Signal, Sequence[Tensor]],
        schedule: Schedule,
        asked: Asked,
    ) -> None:
        """The call brings a prompt with images.

        Args:
            ids: `(B, S)`, the prompt before the cut.
            cut: what is left of it at layer 0.
            visual: `(B, M)` bool, where visual tokens stand in the cut prompt, structural ones included.
            images: in prompt order.
            order: the number of each image among those that were encoded; beams bring the same number again.
            signals: what the encoder said of each image of these numbers, `(N, ...)` over the whole image.
            schedule: what acts on them here, and what has before.
            asked: which predictions the caller wants.

        Raises:
            FoveateError: a step won't find what it needs.
            KeepError: a step would keep more than arrives.
        """
        rows, width = cut.columns.shape
        positions = cut.position_ids.view(self.family.position_axes, rows, width)
        columns, of_image = torch.stack([cut.columns, visual]).cpu().numpy()
        row_of, column_of = of_image.nonzero()
        self._steps = {step.layer: step.method for step in schedule.depth}
        self._watched = {layer for step in schedule.depth for layer in watched(step.method.needs, step.layer)}
        ends = asked.ends(ids, self.family.image_token, [image.before for image in images])
        packs = any(method.positions == "pack" for method in self._steps.values())
        way: list[Foreseen] = []
        after = 0
        for number, image in enumerate(images):
            first, after = after, after + image.after
            every = column_of[first:after]
            row = int(row_of[first]) if len(every) else 0
            end = ends[number]
            if len(every) and end < columns[row, every[-1]]:
                # What is asked for begins before the image or in it, so it doesn't tell where the prompt ends.
                end = ids.shape[1] - 1
            begin = None
            if packs and len(every):
                begin = positions[0, row, int(every[0])] - int(image.cut.positions[0, 0])
            layout, slot, dense = image.seen, None, torch.arange(image.seen.content)
            said = {signal: values[order[number]] for signal, values in signals.items()}
            if image.plan is not None:
                slot = image.plan.slot[0]
                layout, dense = _strip(len(slot)), slot.cpu()
                said = {signal: value[slot] for signal, value in said.items()}
            arriving = None if slot is None else len(slot)
            foreseen = schedule.foresee(image.seen, arriving, len(self.family.decoder_layers))
            way.append(foreseen)
            dense = dense_slots(image.seen, image.layout)[dense]
            places, marks = every, np.empty((2, 0), dtype=np.int64)
            if image.layout.structural:
                # Structural tokens stand among the content tokens, as the layout of the full image says.
                content = torch.isin(image.cut.slot, image.layout.places[dense]).numpy()
                places = every[content]
                marks = np.stack([image.layout.held(dense).nonzero().squeeze(1).numpy(), every[~content]])
            # Columns ascend behind the padding, which is -1.
            begins, behind = np.searchsorted(columns[row], [0, end + 1])
            text = int(behind - begins - of_image[row, begins:behind].sum())
            self.images.append(
                Standing(
                    row,
                    places,
                    layout,
                    image.seen,
                    foreseen.remaining,
                    dense,
                    image.layout,
                    marks,
                    slot,
                    said,
                    foreseen.methods,
                    text,
                    end,
                    image.cut.span,
                    begin,
                    number,
                )
            )
        if len(set(order)) < len(order):
            # What beams have said since doesn't part them.
            self._lead(ids[:, : self.made_for], order)
        lengths = (columns >= 0).sum(axis=1).tolist()
        self._check(way, lengths)
        self._line = _Line(cut.columns, lengths, cut.restore_index(), positions, cut.following)
        if 0 in self._watched:
            self._at_start = {number: self._places([number]) for number in range(len(images))}

    def _check(self, way: Sequence[Foreseen], lengths: Sequence[int]) -> None:
        """Whether each step will find what it needs: once a layer has run, a cache holds what it read.

        Args:
            way: of each image.
            lengths: of each row.

        Raises:
            FoveateError: a step reads text where there is none, or leaves nothing of a row.
        """
        gone: dict[int, list[tuple[int, int]]] = {}
        for image, foreseen in zip(self.images, way, strict=True):
            if not image.text:
                for layer in foreseen.reached:
                    if any(map(reads_text, image.methods[layer].needs)):
                        raise FoveateError(
                            f"{self._steps[layer]} at layer {layer} reads the question, and an image came without any "
                            "text; put the question into the prompt"
                        )
            if foreseen.reached and not foreseen.left:
                gone.setdefault(image.row, []).append((foreseen.reached[-1], len(image.every)))
        for row, images in gone.items():
            if sum(count for _, count in images) == lengths[row]:
                raise self._bare(max(layer for layer, _ in images))

    def _bare(self, layer: int) -> FoveateError:
        return FoveateError(
            f"{self._steps[layer]} at layer {layer} leaves a row without any token: it has no text; put some into the "
            "prompt, or keep some visual tokens"
        )

    def _lead(self, ids: Tensor, order: Sequence[int]) -> None:
        """Let the same image at the same place of the same prompt share one plan, whatever rounding does."""
        prompts = [tuple(row) for row in ids.tolist()]
        leaders: dict[tuple[Any, ...], int] = {}
        before: dict[int, int] = {}
        for number, image in enumerate(self.images):
            place = before[image.row] = before.get(image.row, -1) + 1
            image.leader = leaders.setdefault((order[number], place, prompts[image.row]), number)

    def call(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder is called: its arguments, without what its loop would add at places that are gone by then."""
        if not self._steps:
            return kwargs
        without, additions = self.family.take_additions(kwargs)
        if min(self._steps) >= len(additions):
            return kwargs
        sizes = [len(image.places) for image in self.images]
        self._additions = [list(level.split(sizes)) for level in additions]
        return without

    # At a layer

    def enter(self, layer: int, hidden: Tensor, call: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What a layer is to read in place of `hidden` `(B, S, D)`, and of what the model passes it by name."""
        part = self._parts.get(layer)
        if part is not None:
            if layer in self._steps and any(len(image.places) for image in self.images):
                hidden = self._compress(layer, hidden, partial(self._arriving, part, hidden, call))
            self._open(part, hidden, call)
            self._current = part
        part = self._current
        if part is not None and part.changed:
            given = id(call.get("position_embeddings"))
            if given not in part.rotary:
                part.rotary[given] = self._rotary(part.past, hidden, call)
            call = {**call, "attention_mask": part.mask, "position_embeddings": part.rotary[given]}
            if call.get("position_ids") is not None:
                # With position embeddings given, attention only looks here for packed sequences, and would take gaps
                # for their borders.
                call["position_ids"] = None
        if layer in self._watched:
            self._inputs[layer] = self._input(layer, hidden, call, call["position_embeddings"])
        return hidden, call

    def _arriving(self, part: _Part, hidden: Tensor, call: dict[str, Any]) -> LayerInput:
        """What the first layer of a part would read if its step did nothing."""
        return self._input(part.layer, hidden, call, self._rotary(part.past, hidden, call))

    def _input(self, layer: int, hidden: Tensor, call: dict[str, Any], rotary: Any) -> LayerInput:
        """What a layer reads, for signals."""
        past = None if self.state is None else self.state.at(layer)
        return LayerInput(self.family, layer, hidden, rotary, self._mask(past), cache_of_call(call))

    def leave(self, layer: int, hidden: Tensor) -> Tensor:
        """What a layer's output `(B, S, D)` becomes before the next one reads it."""
        if layer >= len(self._additions):
            return hidden
        rows, width, _ = hidden.shape
        places = _moved_to(np.concatenate([image.row * width + image.places for image in self.images]), hidden.device)
        values = torch.cat(self._additions[layer]).to(hidden.device, hidden.dtype)
        return hidden.flatten(0, 1).index_add(0, places, values).view(rows, width, -1)

    def _open(self, part: _Part, hidden: Tensor, call: dict[str, Any]) -> None:
        """Make what the layers of a part need."""
        part.line = line = self._line
        past = part.past
        part.changed = past is not (None if self.state is None else self.state.first)
        padded = past is not None and past.padded
        if line is not None:
            part.changed |= line.taken is not None
            padded |= line.padded
        if not part.changed:
            return
        # Where the model found that nothing needs to be hidden, nothing needs to be hidden among fewer columns either.
        if call.get("attention_mask") is not None or padded:
            part.mask = self.family.causal_mask(hidden, self._mask(past), cache_of_call(call), part.layer)

    def _rotary(self, past: Held | None, hidden: Tensor, call: dict[str, Any]) -> Any:
        """Position embeddings of the new columns, in layers that hold `past`."""
        line = self._line
        if (past is not None and past.packed) or (line is not None and line.packed):
            return self.family.rotary(hidden, self._positions(past))
        if line is None or line.taken is None:
            return call["position_embeddings"]
        taken = line.taken
        return tuple(_taken(each, taken) for each in call["position_embeddings"])

    def _mask(self, past: Held | None) -> Tensor:
        """The mask of a part over its cache and its new columns: `(B, P + M)` int64."""
        logical = 0 if self.state is None else self.state.logical
        if self._line is None:
            assert past is not None
            return past.mask(self.whole, logical, self.tail + self._fresh)
        fresh = (self._line.columns >= 0).long()
        return fresh if past is None else torch.cat([past.mask(self.whole, logical, self.tail), fresh], dim=1)

    def _moved(self, past: Held | None) -> Tensor | int:
        """How far earlier turns have moved the positions of a part against those of layer 0: `(B,)`."""
        if past is None or not past.packed:
            return 0
        assert self.state is not None
        return past.following - self.state.first.following

    def _positions(self, past: Held | None) -> Tensor:
        """Position ids of the new columns in a part: `(B, M)`, or `(axes, B, M)`."""
        axes = self.family.position_axes
        if self._line is None:
            assert past is not None
            return text_positions(past.following + self.tail, self._fresh, self._marks, axes)
        moved = self._moved(past)
        positions = self._line.positions
        if isinstance(moved, Tensor):
            positions = positions + moved[:, None]
        return positions[0] if axes == 1 else positions

    # A step

    def _compress(self, layer: int, hidden: Tensor, here: Callable[[], LayerInput]) -> Tensor:
        """Plan the images and shorten the line: the hidden states `(B, M, D)` of a layer -> `(B, M', D)`.

        `here` tells what methods may ask of this layer.
        """
        began = self.clock()
        line = self._line
        assert line is not None
        rows, width, _ = hidden.shape
        device = hidden.device
        flat = hidden.flatten(0, 1)
        groups: dict[Any, list[int]] = {}
        for number, image in enumerate(self.images):
            if len(image.places):
                # Texts of different length can't be one batch without padding, which a method would have to know.
                method = image.methods[layer]
                text = image.text if any(map(reads_text, method.needs)) else 0
                began_with = self._at_start[number].visual.shape[1] if self._at_start else 0
                kind = (image.layout, image.whole, image.remaining, image.full, image.slot is None)
                key = (method, *kind, text, began_with)
                groups.setdefault(key, []).append(number)

        # On the host: the line behind the step. If only the device knows which tokens stay, it looks here as if they
        # were the first ones of each image; their number is what counts.
        keep = np.zeros((rows, width), dtype=np.bool_)
        for row, length in enumerate(line.lengths):
            keep[row, width - length :] = True
        plans: list[tuple[list[int], Plan, Tensor, Tensor]] = []
        stay: dict[int, npt.NDArray[np.int64]] = {}
        known = True
        for (method, *_), members in groups.items():
            standing = [self.images[number] for number in members]
            places = _moved_to(np.stack([image.row * width + image.places for image in standing]), device)
            features = flat.index_select(0, places.flatten()).view(*places.shape, -1)
            plan = self._plan(method, members, features, here)
            plans.append((members, plan, places, features))
            on_host = _at_hand(device) or plan.valid is not None or bool(standing[0].full.structural)
            known &= on_host
            if not on_host:
                kept: list[Any] = [slice(plan.slot.shape[1])] * len(members)
            else:
                kept = list(plan.slot.cpu().numpy())
                if plan.valid is not None:
                    kept = [each[there] for each, there in zip(kept, plan.valid.cpu().numpy(), strict=True)]
            for number, image, slots in zip(members, standing, kept, strict=True):
                keep[image.row, image.every] = False
                if image.full.structural:
                    image.dense = image.dense[torch.from_numpy(slots)]
                    image.marks = image.marks[:, image.full.held(image.dense).numpy()[image.marks[0]]]
                    keep[image.row, image.marks[1]] = True
                stay[number] = image.places[slots]
                keep[image.row, stay[number]] = True
        lengths = keep.sum(axis=1)
        if not lengths.min():
            raise self._bare(layer)
        narrow = int(lengths.max())
        lead = narrow - lengths
        landing = keep.cumsum(axis=1) - 1 + lead[:, None]
        there = np.arange(narrow) >= lead[:, None]
        # Padding reads its row's last column; nobody reads padding.
        source = np.repeat(np.arange(1, rows + 1) * width - 1, narrow).reshape(rows, narrow)
        source[there] = np.flatnonzero(keep)

        # On the device: the true places, and what flows together.
        index, real = _moved_to(source, device), _moved_to(there, device)
        merged: list[tuple[Tensor, Tensor]] = []
        for members, plan, places, features in plans:
            self._follow(layer, members, plan)
            merges = plan.group is not None or plan.mix is not None
            if known and not merges:
                continue
            landed = [
                self.images[number].row * narrow + landing[self.images[number].row, stay[number]] for number in members
            ]
            target = _moved_to(np.concatenate(landed), device)
            if not known and plan.valid is None:
                index = index.flatten().index_copy(0, target, places.gather(1, plan.slot).flatten()).view(rows, narrow)
            if merges:
                values = plan.apply(features)
                merged.append((target, values.flatten(0, 1) if plan.valid is None else values[plan.valid]))
        short = flat.index_select(0, index.flatten())
        for target, values in merged:
            short = short.index_copy(0, target, values)

        if known:
            rank = _moved_to(landing.clip(min=0), device)
        else:
            left = torch.zeros(rows * width + 1, dtype=torch.int64, device=device)
            left[torch.where(real, index, rows * width)] = 1
            rank = left[:-1].view(rows, width).cumsum(dim=1) - 1 + _moved_to(lead, device)[:, None]
            rank = rank.clamp(min=0)
        self._line = _Line(
            columns=torch.where(real, line.columns.flatten()[index], -1),
            lengths=lengths.tolist(),
            restore=rank.gather(1, line.restore),
            positions=line.positions.flatten(1)[:, index],
            following=line.following,
            taken=index if line.taken is None else line.taken.flatten()[index],
            packed=line.packed,
        )
        packs = self._steps[layer].positions == "pack"
        # Where what follows an image begins, for images of which nothing is left to tell.
        follows = {n: int(landing[self.images[n].row, self.images[n].places[-1]]) + 1 for n in stay} if packs else {}
        for number, places in stay.items():
            image = self.images[number]
            image.places = landing[image.row, places]
            image.marks[1] = landing[image.row, image.marks[1]]
            image.layout = _strip(len(places))
            image.remaining = image.remaining.after(image.methods[layer])
        if packs:
            self._pack(follows)
        self.counts[layer] = [len(image.places) + image.marks.shape[1] for image in self.images]
        self.milliseconds += (self.clock() - began) * 1e3
        return short.view(rows, narrow, -1)

    def _plan(self, method: Method, members: Sequence[int], features: Tensor, here: Callable[[], LayerInput]) -> Plan:
        """What becomes of images of one layout: features `(G, N, D)`; those of one sample share one plan."""
        own = [at for at, number in enumerate(members) if self.images[number].leader == number]
        index = None
        if len(own) < len(members):
            at_leader = {members[at]: position for position, at in enumerate(own)}
            followed = np.array([at_leader[self.images[number].leader] for number in members])
            index = _moved_to(followed, features.device)
            features = features[_moved_to(np.array(own), features.device)]
        if self.made_for is not None:
            self._followed += 1
            plan = self.plans[self._followed - 1]
            return plan if index is None else _rows(plan, index)
        leading = [self.images[members[at]] for at in own]
        signals = {signal: torch.stack([each.signals[signal] for each in leading]) for signal in leading[0].signals}
        slots = [each.slot for each in leading if each.slot is not None]
        tiles = leading[0].remaining.tiles
        left = None if tiles is None else tuple(tile.content for tile in tiles)
        origin = Origin(leading[0].whole, torch.stack(slots), left) if slots else None
        inside = [need for need in method.needs if need not in signals]
        with torch.set_grad_enabled(method.trained and torch.is_grad_enabled()):
            if inside:
                signals |= self._answers(inside, [members[at] for at in own], here())
            seen = features if method.trained else features.detach()
            plan = plan_of(method, VisualTokens(seen, leading[0].layout, Signals(signals), origin))
        self.plans.append(plan)
        return plan if index is None else _rows(plan, index)

    def _answers(self, needs: Sequence[Signal], members: Sequence[int], here: LayerInput) -> dict[Signal, Tensor]:
        """What the decoder says of images with texts of one length."""
        reads = any(map(reads_text, needs))
        places = self._places(members, reads)
        embedded = None
        if any(isinstance(need, DecoderInput) for need in needs):
            embedded = self._inputs[0].hidden, Places.of([self._at_start[number] for number in members])
        return {need: answer(need, places, here, self._inputs.get(here.layer - 1), embedded) for need in needs}

    def _places(self, members: Sequence[int], reads: bool = True) -> Places:
        """Where images stand in the line as it is now, and the text that each is asked about.

        Texts must be of one length, so they are left out where nothing `reads` them.
        """
        line = self._line
        assert line is not None
        width, device = line.columns.shape[1], line.columns.device
        images = [self.images[number] for number in members]
        text = [np.empty(0, dtype=np.int64) for _ in images]
        if reads:
            plain = np.arange(width) >= width - np.array(line.lengths)[:, None]
            for image in self.images:
                plain[image.row, image.every] = False
            text = [np.flatnonzero(plain[image.row])[: image.text] for image in images]
        rows = _moved_to(np.array([image.row for image in images]), device)
        ends = _moved_to(np.array([image.last for image in images]), device)
        visual = _moved_to(np.stack([image.places for image in images]), device)
        texts = _moved_to(np.stack(text), device)
        return Places(rows, visual, texts, line.restore[rows, ends])

    def _follow(self, layer: int, members: Sequence[int], plan: Plan) -> None:
        """What is known of each token goes with those that stay, and what is still to be added to them."""
        for level in self._additions[layer:]:
            added = plan.apply(torch.stack([level[number] for number in members]))
            for at, number in enumerate(members):
                level[number] = added[at] if plan.valid is None else added[at][plan.valid[at]]
        for at, number in enumerate(members):
            image = self.images[number]
            slot = plan.slot[at] if plan.valid is None else plan.slot[at][plan.valid[at]]
            image.signals = {signal: value[slot] for signal, value in image.signals.items()}
            image.slot = slot if image.slot is None else image.slot[slot]

    def _pack(self, follows: dict[int, int]) -> None:
        """New position ids without gaps for the images, and what follows moves up.

        Args:
            follows: per image that a step acted on, the column behind it.
        """
        line = self._line
        assert line is not None
        device = line.positions.device
        rows, width = line.columns.shape
        shift = np.zeros((rows, width + 1), dtype=np.int64)
        every = [image.every for image in self.images]
        for number, (image, places) in enumerate(zip(self.images, every, strict=True)):
            if len(places):
                shift[image.row, places[-1] + 1] += image.span - len(places)
            elif number in follows:
                shift[image.row, follows[number]] += image.span
                image.span = 0
        shift = shift.cumsum(axis=1)
        moved = _moved_to(shift, device)
        positions = line.positions - moved[:, :-1]
        flat = positions.flatten(1)
        for image, places in zip(self.images, every, strict=True):
            if len(places) and image.begin is not None:
                image.begin = image.begin - int(shift[image.row, places[0]])
                steps = image.begin + torch.arange(len(places), device=device)
                where = _moved_to(image.row * width + places, device)
                flat = flat.index_copy(1, where, steps.expand(flat.shape[0], -1))
                image.span = len(places)
        self._line = replace(
            line, positions=flat.view_as(positions), following=line.following - moved[:, -1], packed=True
        )

    # Behind the last layer

    def behind(self, after: CacheState) -> CacheState:
        """What the cache holds when the call is done; `after` tells it of layer 0."""
        held = list(after.held)
        past_logical = 0 if self.state is None else self.state.logical
        for part in self._parts.values():
            past, line = part.past, part.line
            if line is None:
                assert past is not None
                assert self._marks is not None
                columns = past.grown(past_logical, self.tail + self._fresh)
                following = past.following + self.tail + self._marks.long().sum(dim=1)
                held.append(replace(past, layer=part.layer, columns=columns, following=following))
            elif past is None:
                held.append(Held(part.layer, line.columns, line.following, line.padded, line.packed))
            else:
                columns = past.grown(past_logical, self.tail, line.columns)
                following = line.following + self._moved(past)
                padded, packed = past.padded or line.padded, past.packed or line.packed
                held.append(Held(part.layer, columns, following, padded, packed))
        return replace(after, held=tuple(held))


class DecoderWatch:
    """Hooks on the decoder's layers, put on where the first call needs them; `close` takes them off.

    Args:
        family: the model's family.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._handles: dict[Any, Any] = {}
        self._lock = threading.Lock()
        # One descent per thread. A backward pass that runs layers again (gradient checkpointing) does so inside them,
        # behind their hooks.
        self._local = threading.local()

    def start(self, descent: Descent | None) -> None:
        """The next call of the decoder by this thread is `descent`; None leaves it alone."""
        self._local.descent = descent
        if descent is None:
            return
        first = descent.first
        with self._lock:
            if not self._handles:
                decoder = self._family.decoder
                before: Any = _CallHook(self._call)
                self._handles["decoder"] = decoder.register_forward_pre_hook(before, with_kwargs=True)
            if first in self._handles:
                return
            for layer, module in enumerate(self._family.decoder_layers):
                if layer >= first and layer not in self._handles:
                    hook: Any = _LayerHook(self._local, layer)
                    self._handles[layer] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        descent: Descent | None = getattr(self._local, "descent", None)
        if descent is None:
            return None
        kwargs = descent.call(kwargs)
        with self._lock:
            for layer in range(descent.added):
                if (layer, "behind") not in self._handles:
                    hook: Any = _BehindHook(self._local, layer)
                    module = self._family.decoder_layers[layer]
                    self._handles[layer, "behind"] = module.register_forward_hook(hook)
        return args, kwargs

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.popitem()[1].remove()


class _CallHook:
    """Changes what the decoder is called with. A compiled model is left for it: each call is another."""

    def __init__(self, change: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self.change = change

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.change(args, kwargs)


class _BehindHook:
    """Changes what one layer returns. A compiled decoder is left for it, too."""

    def __init__(self, local: threading.local, layer: int) -> None:
        self.local = local
        self.layer = layer

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        descent: Descent | None = getattr(self.local, "descent", None)
        return None if descent is None else descent.leave(self.layer, output)


class _LayerHook:
    """Changes what one layer is called with. A compiled decoder is left for it, too."""

    def __init__(self, local: threading.local, layer: int) -> None:
        self.local = local
        self.layer = layer

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        descent: Descent | None = getattr(self.local, "descent", None)
        if descent is None:
            return None
        if not args:
            kwargs = dict(kwargs)
            args = (kwargs.pop("hidden_states"),)
        hidden, kwargs = descent.enter(self.layer, args[0], kwargs)
        return (hidden, *args[1:]), kwargs


def _at_hand(device: torch.device) -> bool:
    """Whether the host reads what lies on a device without waiting for it."""
    return device.type == "cpu"


def _moved_to(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """What the host has counted, on the device that needs it; the host doesn't wait."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _strip(count: int) -> Layout:
    return Layout((Segment(1, 1, count),))


def _rows(plan: Plan, index: Tensor) -> Plan:
    """Some images of a plan; one may come more than once."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index]

    return Plan(plan.slot[index], of(plan.group), of(plan.weight), of(plan.mix), of(plan.valid))


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Rotary embeddings `(B, M0, d)`, or `(axes, B, M0, d)`, at places `(B, M)` of the flattened line."""
    wide = values.expand(*values.shape[:-3], places.shape[0], *values.shape[-2:])
    return wide.flatten(-3, -2)[..., places, :]
