"""A prompt with images: where their placeholders are, where it ends, what text it holds, and cutting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.engine.columns import (
    Host,
    left_padded,
    on_device,
    per_axis,
    standing_for,
    take_columns,
    together_on_device,
)
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.layout import remembered
from foveate.plan import Plan
from foveate.tokens import Layout

PER_COLUMN = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
"""Inputs with one value per column of the prompt, and what stands at padding made here."""


@dataclass(frozen=True)
class CompressedImage:
    """One image after the steps before the decoder, ready to enter a prompt.

    Attributes:
        layout: its full layout.
        slot: `(M,)` int64, the kept places among the image's columns, ascending.
        features: `(M', D)`, what stands at those places, without those of text ids: row breaks, for instance.
        positions: `(axes, M)` int64, position ids relative to where each run of the image begins.
        spans: per run, how far it moves the position of the text that follows it.
        companions: what rides along with the features, each `(M', D)`.
        own_positions: whether `positions` are those of the full image, so that nothing moves.
        seen: the layout that the plan is over: the full one, or the smaller one of a step at `@pixels`.
        plan: a batch of one image over the content tokens of `seen`; None if no step acted.
        reaches: per run, the largest of its positions before anything was dropped, plus one: what is generated comes
            after it, even where the prompt's text doesn't; at most its span for most images. () is the spans.
    """

    layout: Layout
    slot: Tensor
    features: Tensor
    positions: Tensor
    spans: tuple[int, ...]
    companions: tuple[Tensor, ...] = ()
    own_positions: bool = False
    seen: Layout | None = None
    plan: Plan | None = None
    reaches: tuple[int, ...] = ()

    @property
    def before(self) -> int:
        """Tokens of the image in the full prompt, structural ones included."""
        return self.layout.total

    @property
    def after(self) -> int:
        """Tokens of the image in the shorter prompt."""
        return int(self.slot.shape[0])

    @property
    def leads_text(self) -> bool:
        """Whether the text after it may have smaller positions than some of its own."""
        return any(reach > span for reach, span in zip(self.reaches, self.spans))

    @property
    def grid(self) -> Layout:
        """The layout that the plan is over."""
        return self.layout if self.seen is None else self.seen

    @property
    def cut(self) -> CompressedImage:
        """Refuse a name of version 0.1.

        Raises:
            AttributeError: always; it names what to write instead.
        """
        raise AttributeError("image.cut is gone: write image.slot for image.cut.slot, and so for its other members")


@dataclass(frozen=True)
class CutPrompt:
    """A shorter prompt without the padding it came with, padded anew on the left to its longest row.

    Attributes:
        input_ids: `(B, M)` int64.
        attention_mask: `(B, M)` int64, 0 at padding.
        position_ids: `(B, M)` int64, or `(3, B, M)` with M-RoPE.
        columns: `(B, M)` int64, the column of the full prompt that each place holds; -1 at padding made here.
        restore: `(B, S)` int64, for each column of the full prompt the place that stands for it.
        following: `(B,)` int64, the position id of the next token.
        padded: whether rows of different length had to be padded.
        visual: `(B, M)` bool, the columns of images among them, structural tokens of text included.
        visual_before: `(B, S)` bool, those of the full prompt.
        text_at_end: `()` int64, how many columns at the end are text in every row.
        on_host: `columns` and `visual` on the host.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    columns: Tensor
    restore: Tensor
    following: Tensor
    padded: bool
    visual: Tensor
    visual_before: Tensor
    text_at_end: Tensor
    on_host: tuple[Host, Host]

    def moved(self, by: int) -> CutPrompt:
        """Return the same with larger position ids."""
        if not by:
            return self
        return replace(self, position_ids=self.position_ids + by, following=self.following + by)

    def take(self, values: Tensor, fill: int) -> Tensor:
        """Cut a tensor with one value per column: `(B, S)` -> `(B, M)`, `fill` at padding made here.

        Raises:
            FoveateError: it has more or fewer values than there are columns.
        """
        if values.shape[-1] != self.restore.shape[1]:
            raise FoveateError(
                f"{values.shape[-1]} values for {self.restore.shape[1]} tokens; labels and token types have one for "
                "every token of the prompt, image placeholders included"
            )
        return take_columns(values, self.columns, fill)


def reaches_of(positions: Tensor, layout: Layout) -> tuple[int, ...]:
    """Return per run the largest of its relative positions, plus one: `(axes, N)` of all columns."""
    return tuple(int(run.max()) + 1 for run in positions.split(layout.run_lengths, dim=1))


def refuse_packed(inputs: Mapping[str, Any]) -> None:
    """Refuse rows that hold several documents, whose images and texts would see each other after the cut.

    transformers reads them off position ids that start again, without a mask and without a cache, or off `cu_seq_lens`.

    Raises:
        FoveateError: a row holds several documents.
    """
    positions = inputs.get("position_ids")
    packed = any(name.startswith("cu_seq_lens") and value is not None for name, value in inputs.items())
    if not packed and positions is not None and inputs.get("attention_mask") is None:
        axis = positions if positions.ndim == 2 else positions[0]
        packed = bool((axis.diff(dim=-1) < 0).any())
    if packed:
        raise FoveateError(
            "a row holds several packed documents (position ids that start again, or cu_seq_lens), and compressed rows "
            "can't keep them apart; pass one document per row, padded, or train without packing"
        )


def refuse_missing_images(family: Family, input_ids: Tensor) -> None:
    """Refuse placeholders in a prompt that comes without images: the model would answer from their own embeddings.

    Args:
        family: knows the placeholder.
        input_ids: `(B, S)` int64.

    Raises:
        FoveateError: the prompt has some.
    """
    placeholders = int(family.placeholders(input_ids).sum())
    if placeholders:
        raise FoveateError(
            f"the prompt holds {placeholders} image placeholders and no image came with it; pass all that the "
            "processor returned"
        )


def check_prompt(counts: Sequence[int], layouts: Sequence[Layout]) -> list[int]:
    """Check that the rows' placeholders are complete images, in order; return the row that each image stands in.

    Args:
        counts: how many placeholders each row has.
        layouts: of each image, in prompt order.

    Raises:
        FoveateError: there are more or fewer placeholders than the images have tokens.
    """
    sizes = [layout.placeholders for layout in layouts]
    rows: list[int] = []
    following = 0
    for row, count in enumerate(counts):
        first, found = following, 0
        while following < len(sizes) and found < count:
            found += sizes[following]
            rows.append(row)
            following += 1
        if found != count:
            raise FoveateError(
                f"row {row} of the prompt holds {count} image placeholders, and images {first} to {following - 1} make "
                f"{found} visual tokens; pass complete images with their prompt (chunked prefill is not supported)"
            )
    if following != len(sizes):
        raise FoveateError(f"{len(sizes)} images came with a prompt that has places for {following}")
    return rows


def image_columns(family: Family, placeholder: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """Mark the columns of images: their placeholders, and text that is a structural token, such as [IMG_BREAK].

    Args:
        family: named in errors.
        placeholder: `(B, S)` bool, where a placeholder stands.
        layouts: of each image, in prompt order, as many as `check_prompt` has counted.

    Returns:
        `(B, S)` bool.

    Raises:
        FoveateError: another placeholder, or nothing, stands where an image has such text.
    """
    offsets = [_text_offsets(layout) for layout in layouts]
    if not any(len(after) for after, _ in offsets):
        return placeholder
    begins = accumulate((layout.placeholders for layout in layouts), initial=0)
    last = torch.cat([after + begin for (after, _), begin in zip(offsets, begins)]).to(placeholder.device)
    offset = torch.cat([offset for _, offset in offsets]).to(placeholder.device)
    rows, columns = placeholder.nonzero()[last].unbind(1)
    columns = columns + offset
    if int(columns.max()) >= placeholder.shape[1] or bool(placeholder[rows, columns].any()):
        raise FoveateError(
            f"{family.title} puts a text token after each row or tile of an image, and the prompt has none at some "
            "place; pass what its processor returned, unchanged"
        )
    marked = placeholder.clone()
    marked[rows, columns] = True
    return marked


@remembered
def _text_offsets(layout: Layout) -> tuple[Tensor, Tensor]:
    """Return for each structural token of text the placeholder before it, and how far after that it stands: `(S,)`."""
    is_text = torch.zeros(layout.total, dtype=torch.bool)
    is_text[[token.place for token in layout.structural if token.is_text]] = True
    place = is_text.nonzero().squeeze(1)
    before = (~is_text).cumsum(0) - 1
    columns = (~is_text).nonzero().squeeze(1)
    return before[place], place - columns[before[place]]


def cut_prompt(
    family: Family,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    images: Sequence[CompressedImage],
    start: Tensor | None = None,
) -> CutPrompt:
    """Cut the placeholders that no visual token takes any more, and the padding.

    Args:
        family: knows the placeholder and the position ids.
        input_ids: `(B, S)` int64.
        attention_mask: `(B, S)`, 0 at padding; None for no padding.
        position_ids: the caller's own, `(B, S)`, `(3, B, S)` or `(4, B, S)` (its first row is then dropped); None
            makes them as the model itself would.
        images: what is left of each image, in prompt order.
        start: `(B,)` int64, the position id of the first column; None for 0.

    Raises:
        FoveateError: images and placeholders don't fit together.
    """
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise FoveateError(
            f"attention_mask is {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; both need one "
            "value per token of each prompt"
        )
    layouts = [image.layout for image in images]
    found = family.placeholders(input_ids)
    # The prompt is cut on the host, which asks the device once: how many columns are left, and which, is known there.
    given = [found] if attention_mask is None else [found, attention_mask]
    marks = torch.stack(given).cpu().numpy() != 0
    check_prompt(marks[0].sum(axis=1).tolist(), layouts)
    placeholder = image_columns(family, found, layouts)
    visual_before = marks[0] if placeholder is found else placeholder.cpu().numpy()
    real = np.ones_like(visual_before) if attention_mask is None else marks[1]
    rows, width = input_ids.shape
    nothing_cut = all(image.after == image.before for image in images) and bool(real.all())
    device = input_ids.device
    if nothing_cut:
        # What acts on these images acts inside the decoder.
        host_columns, host_visual, padded = np.tile(np.arange(width), (rows, 1)), visual_before, False
        short_ids, visual = input_ids, placeholder
        columns, mask, end, text_at_end = together_on_device(
            [host_columns, np.ones_like(host_columns), np.full(rows, width), _text_at_end(host_columns, host_visual)],
            device,
        )
        restore = columns
        own = all(image.own_positions and image.spans == image.layout.run_lengths for image in images)
        if family.position_axes == 1 and own and (position_ids is None or start is not None):
            # As many positions as tokens, on one axis: every column simply follows the one before it.
            positions = columns if start is None else columns + start[:, None]
            following = end if start is None else start + width
            on_host = (host_columns, host_visual)
            return CutPrompt(
                short_ids,
                mask,
                positions,
                columns,
                restore,
                following,
                padded,
                visual,
                placeholder,
                text_at_end,
                on_host,
            )
    else:
        kept = _kept(visual_before, real, images)
        host_columns, padded = left_padded(kept)
        occupied = host_columns >= 0
        host_visual = np.take_along_axis(visual_before, host_columns.clip(min=0), axis=1) & occupied
        restore, columns, mask, text_at_end = together_on_device(
            [
                standing_for(host_columns, kept),
                host_columns,
                occupied.astype(np.int64),
                _text_at_end(host_columns, host_visual),
            ],
            device,
        )
        visual = on_device(host_visual, device)
        short_ids = take_columns(input_ids, columns, 0) if padded else input_ids.gather(1, columns)
    left = None if nothing_cut else host_columns
    layout = _PositionLayout(family, visual_before, left, host_visual, images, device)
    positions, following = layout.positions(position_ids, real, start)
    return CutPrompt(
        input_ids=short_ids,
        attention_mask=mask,
        position_ids=positions[0] if family.position_axes == 1 else positions,
        columns=columns,
        restore=restore,
        following=following,
        padded=padded,
        visual=visual,
        visual_before=placeholder,
        text_at_end=text_at_end,
        on_host=(host_columns, host_visual),
    )


def _text_at_end(columns: Host, visual: Host) -> Host:
    """Return how many columns at the end of a prompt are text in every row, `()` int64."""
    width = columns.shape[1]
    other = (visual | (columns < 0)) * np.arange(1, width + 1)
    return np.array(width - other.max(), dtype=np.int64)


def _kept(visual: Host, real: Host, images: Sequence[CompressedImage]) -> Host:
    """Mark the columns that stay: text that is not padding, and the slots of the images: `(B, S)` bool."""
    begins = accumulate((image.layout.total for image in images), initial=0)
    kept = np.concatenate([image.slot.cpu().numpy() + begin for image, begin in zip(images, begins)])
    keep = ~visual & real
    keep.reshape(-1)[np.flatnonzero(visual)[kept]] = True
    return keep


@dataclass(frozen=True)
class _PositionLayout:
    """Lays out position ids over a prompt that was cut, on the host.

    Attributes:
        family: knows the axes.
        placeholder: `(B, S)` bool, the columns of images in the full prompt.
        columns: `(B, M)` int64, those that are left, -1 at padding; None for all.
        visual: `(B, M)` bool, where visual tokens stand in the cut prompt.
        images: in prompt order.
        device: where position ids go.
    """

    family: Family
    placeholder: Host
    columns: Host | None
    visual: Host
    images: Sequence[CompressedImage]
    device: torch.device

    def positions(self, given: Tensor | None, real: Host, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return position ids `(axes, B, M)` of what is kept, and `(B,)` of the next token.

        Args:
            given: the caller's own, or None.
            real: `(B, S)` bool, False at padding.
            start: as in `cut_prompt`.
        """
        relative, spans = [image.positions for image in self.images], [image.spans for image in self.images]
        if given is None or start is not None:
            padding_counts = self.family.counts_padding and start is None
            moves = np.ones_like(real) if padding_counts else real
            # With position ids `generate` goes on after the last one; without, the model goes on after the largest.
            reaches = [image.reaches or image.spans for image in self.images] if given is None else []
            return self._laid_out(relative, spans, moves, start, reaches)
        axes = per_axis(given, self.family.position_axes, real.shape[0])
        positions = axes
        if self.columns is not None:
            columns = on_device(self.columns, self.device)
            positions = torch.stack([take_columns(axis, columns, 0) for axis in axes])
        following = self._after(axes, real)
        if all(image.own_positions for image in self.images):
            return positions, following
        # The caller's positions, moved by as much as the images' new ones move them.
        new, new_following = self._laid_out(relative, spans, real, start)
        dense = [self.family.image_positions(image.layout)[:, image.slot] for image in self.images]
        dense_spans = [self.family.image_spans(image.layout) for image in self.images]
        old, old_following = self._laid_out(dense, dense_spans, real, start)
        return positions + new - old, following + new_following - old_following

    def _after(self, axes: Tensor, real: Host) -> Tensor:
        """Return `(B,)`, the position id of the token after each row: position ids `(axes, B, S)`, `real` `(B, S)`.

        It is one more than the last one; after an image, whose axes differ, one more than the largest.
        """
        last = (real * np.arange(real.shape[1])).max(axis=1)
        after_image = on_device(self.placeholder[np.arange(len(last)), last], self.device)
        last_ids = axes[0].gather(1, on_device(last, self.device)[:, None]).squeeze(1)
        return torch.where(after_image, axes.amax(dim=(0, 2)), last_ids) + 1

    def _laid_out(
        self,
        relative: list[Tensor],
        spans: Sequence[tuple[int, ...]],
        moves: Host,
        start: Tensor | None,
        reaches: Sequence[tuple[int, ...]] = (),
    ) -> tuple[Tensor, Tensor]:
        """Lay out images of these relative positions and spans.

        Args:
            relative: positions of each image.
            spans: per image, how far each of its runs moves the text after it.
            moves: `(B, S)` bool, where text moves on.
            start: as in `cut_prompt`.
            reaches: per image those of its runs; what follows a row comes after all of them.
        """
        lengths = chain.from_iterable(image.layout.run_lengths for image in self.images)
        last = np.flatnonzero(self.placeholder)[np.fromiter(accumulate(lengths), dtype=np.int64) - 1]
        advance = (moves & ~self.placeholder).astype(np.int64)
        advance.reshape(-1)[last] = list(chain.from_iterable(spans))
        base = advance.cumsum(axis=1) - advance
        following = advance.sum(axis=1)
        if reaches and any(image.leads_text for image in self.images):
            reached = base.reshape(-1)[last] + list(chain.from_iterable(reaches))
            np.maximum.at(following, last // moves.shape[1], reached)
        if self.columns is not None:
            base = np.where(self.columns < 0, 0, np.take_along_axis(base, self.columns.clip(min=0), axis=1))
        positions = np.repeat(base[None], self.family.position_axes, axis=0)
        positions[:, self.visual] += np.concatenate([each.cpu().numpy() for each in relative], axis=1)
        laid_out, after = together_on_device([positions, following], self.device)
        if start is None:
            return laid_out, after
        begin = start[:, None]
        if self.columns is not None:
            begin = begin * on_device(self.columns >= 0, self.device)
        return laid_out + begin, after + start


def texts_of(
    family: Family, input_ids: Tensor, attention_mask: Tensor | None, layouts: Sequence[Layout]
) -> list[Tensor]:
    """Return the text that stands with each image: all text of its row in this call, embedded, `(T, D)`.

    Text before the image, after it and between its runs; neither columns of images nor padding. In a row to learn
    from, the answer is text, too.

    Args:
        family: knows the placeholder, and how text is embedded.
        input_ids: `(B, S)` int64.
        attention_mask: `(B, S)`, 0 at padding; None for no padding.
        layouts: of each image, in prompt order.

    Raises:
        FoveateError: images and placeholders don't fit together.
    """
    placeholder = family.placeholders(input_ids)
    rows = check_prompt(placeholder.sum(dim=1).tolist(), layouts)
    placeholder = image_columns(family, placeholder, layouts)
    real = ~placeholder if attention_mask is None else ~placeholder & attention_mask.bool()
    with torch.no_grad():
        texts = family.embed(input_ids[real]).split(real.sum(dim=1).tolist())
    return [texts[row] for row in rows]


@dataclass(frozen=True)
class WantedPredictions:
    """Which predictions a caller wants; they show where its prompt ends and the answer begins.

    Attributes:
        labels: `(B, L)` int64, -100 where nothing is predicted, of the last L columns; None for no labels.
        last: without labels, how many of the last columns make predictions.
    """

    labels: Tensor | None = None
    last: int = 1

    def prompt_ends(self, placeholder: Tensor, sizes: Sequence[int]) -> list[int]:
        """Return, per image, the column that holds the last token of its prompt.

        It makes the first wanted prediction after the image: with labels it is the column before the first label, else
        the one whose logits come first. Without either it is the last column.

        Args:
            placeholder: `(B, S)` bool, the columns of images.
            sizes: columns of each image, in prompt order.
        """
        length = placeholder.shape[1]
        end = length - min(max(self.last, 1), length)
        if self.labels is None:
            return [end] * len(sizes)
        # Labels may come for the last columns alone, those that make predictions.
        given = (self.labels[:, -length:] != -100).cpu()
        wanted = torch.nn.functional.pad(given, (length - given.shape[1], 0))
        row_of, column_of = placeholder.cpu().nonzero().unbind(1)
        ends: list[int] = []
        after = 0
        for size in sizes:
            after += size
            row, column = int(row_of[after - 1]), int(column_of[after - 1])
            later = wanted[row, column + 1 :].nonzero()
            ends.append(column + int(later[0]) if len(later) else end)
        return ends
