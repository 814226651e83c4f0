"""Cut a prompt: which columns stay, where they go, and which position ids they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout


@dataclass(frozen=True)
class CutImage:
    """What is left of one image.

    Attributes:
        layout: the image's full layout.
        slot: `(M,)` int64, the kept places inside the image's run of placeholders, ascending.
        features: `(M, D)`, what stands at those places.
        companions: what rides along with the features, each `(M, D)`.
        positions: `(axes, M)` int64, position ids relative to where the image begins.
        span: how far the image moves the position of what follows it.
    """

    layout: Layout
    slot: Tensor
    features: Tensor
    positions: Tensor
    span: int
    companions: tuple[Tensor, ...] = ()
    untouched: bool = False
    """Whether positions are those of the full image; False makes the engine work out how far they move."""


@dataclass(frozen=True)
class Cut:
    """A shorter prompt without the padding it came with, padded anew on the left to its longest row.

    Attributes:
        input_ids: `(B, M)` int64.
        attention_mask: `(B, M)` int64, 0 at padding.
        position_ids: `(B, M)` int64, or `(3, B, M)` with M-RoPE.
        columns: `(B, M)` int64, the column of the whole prompt that each place holds; -1 at padding made here.
        keep: `(B, S)` bool, the columns of the whole prompt that are left.
        following: `(B,)` int64, the position id of the next token.
        padded: whether rows of different length had to be padded.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    columns: Tensor
    keep: Tensor
    following: Tensor
    padded: bool

    def take(self, values: Tensor, fill: int) -> Tensor:
        """Cut a tensor that has one value per column: `(B, S)` -> `(B, M)`, with `fill` at padding made here.

        Raises:
            FoveateError: it has more or fewer values than there are columns.
        """
        if values.shape[-1] != self.keep.shape[1]:
            raise FoveateError(
                f"{values.shape[-1]} values for {self.keep.shape[1]} tokens; labels and token types have one for every "
                "token of the prompt, placeholders of the image too"
            )
        return take_columns(values, self.columns, fill)

    def restore_index(self) -> Tensor:
        """For each column of the whole prompt, the place that stands for it: `(B, S)` int64.

        A dropped column is stood for by the kept one before it, so logits and labels keep their shape.
        """
        if self.columns.shape == self.keep.shape and not self.padded:
            return self.columns
        rank = self.keep.cumsum(dim=1) - 1
        lead = (self.columns < 0).sum(dim=1, keepdim=True)
        return (rank + lead).clamp(min=0)


def take_columns(values: Tensor, columns: Tensor, fill: int) -> Tensor:
    """`(B, S)` -> `(B, M)`: the value at each column, `fill` where the column is -1."""
    taken = values.expand(columns.shape[0], -1).gather(1, columns.clamp(min=0))
    return taken.masked_fill(columns < 0, fill)


def check_prompt(family: Family, placeholder: Tensor, layouts: Sequence[Layout]) -> list[int]:
    """Whether the rows' placeholders are whole images, in order; the row that each image stands in.

    Raises:
        FoveateError: there are more or fewer of them than the images have tokens.
    """
    sizes = [layout.total for layout in layouts]
    rows: list[int] = []
    following = 0
    for row, count in enumerate(placeholder.sum(dim=1).tolist()):
        first, held = following, 0
        while following < len(sizes) and held < count:
            held += sizes[following]
            rows.append(row)
            following += 1
        if held != count:
            raise FoveateError(
                f"row {row} of the prompt holds {count} image placeholders, and images {first} to {following - 1} make "
                f"{held} visual tokens; pass whole images with their prompt (chunked prefill is not supported)"
            )
    if following != len(sizes):
        raise FoveateError(f"{len(sizes)} images came with a prompt that has places for {following}")
    return rows


def cut_prompt(
    family: Family,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    images: Sequence[CutImage],
    start: Tensor | None = None,
) -> Cut:
    """Cut the placeholders that no visual token takes any more, and the padding.

    Args:
        family: says which placeholder and which position ids.
        input_ids: `(B, S)` int64.
        attention_mask: `(B, S)`, 0 at padding; None means none is padding.
        position_ids: the caller's own, `(B, S)`, `(3, B, S)` or `(4, B, S)` (its first row is then dropped); None
            makes them as the model itself would.
        images: what is left of each image, in prompt order.
        start: `(B,)` int64, the position id of the first column; None means 0.

    Raises:
        FoveateError: images and placeholders don't fit together.
    """
    placeholder = input_ids == family.image_token
    check_prompt(family, placeholder, [image.layout for image in images])
    device = input_ids.device
    rows = input_ids.shape[0]
    real = torch.ones_like(placeholder) if attention_mask is None else attention_mask.bool()

    # Which columns stay: text that is not padding, and the slots of the images.
    places = placeholder.flatten().nonzero().squeeze(1)
    ends = list(accumulate(image.layout.total for image in images))
    whole = all(image.slot.shape[0] == image.layout.total for image in images)
    if whole and (attention_mask is None or bool(real.all())):
        # Nothing is cut: what acts on these images acts inside the decoder.
        keep, padded = torch.ones_like(placeholder), False
        columns = torch.arange(input_ids.shape[1], device=device).repeat(rows, 1)
        short_ids, visual = input_ids, placeholder
        own_places = all(image.untouched and image.span == image.layout.total for image in images)
        if family.position_axes == 1 and own_places and (position_ids is None or start is not None):
            # As many positions as tokens, on one axis: every column simply follows the one before it.
            positions = columns if start is None else columns + start[:, None]
            following = columns.new_full((rows,), columns.shape[1]) if start is None else start + columns.shape[1]
            return Cut(input_ids, torch.ones_like(input_ids), positions, columns, keep, following, padded)
    else:
        kept = torch.cat([image.slot + end - image.layout.total for image, end in zip(images, ends)]).to(device)
        keep = ~placeholder & real
        keep.view(-1)[places[kept]] = True
        # Where they go: rows end together.
        row_of, column_of = keep.nonzero().unbind(1)
        lengths = keep.sum(dim=1)
        longest = int(lengths.max())
        begins = lengths.cumsum(0) - lengths
        rank = torch.arange(row_of.shape[0], device=device) - begins[row_of]
        columns = torch.full((rows, longest), -1, dtype=torch.int64, device=device)
        columns[row_of, longest - lengths[row_of] + rank] = column_of
        padded = bool((lengths != longest).any())
        short_ids = take_columns(input_ids, columns, 0)
        visual = (short_ids == family.image_token) & (columns >= 0)

    def lay_out(relative: list[Tensor], spans: list[int], moves: Tensor) -> tuple[Tensor, Tensor]:
        """Position ids `(axes, B, M)` of what is kept, and `(B,)` of what follows, for images of these spans."""
        advance = (moves & ~placeholder).long()
        last = places[torch.tensor(ends, device=device) - 1]
        advance.view(-1)[last] = torch.tensor(spans, device=device)
        begin = torch.zeros(rows, dtype=torch.int64, device=device) if start is None else start
        base = advance.cumsum(dim=1) - advance + begin[:, None]
        base = base if short_ids is input_ids else take_columns(base, columns, 0)
        positions = base.repeat(family.position_axes, 1, 1)
        positions[:, visual] += torch.cat(relative, dim=1).to(device)
        return positions, begin + advance.sum(dim=1)

    relative, spans = [image.positions for image in images], [image.span for image in images]
    if position_ids is None or start is not None:
        padding_counts = family.counts_padding and start is None
        positions, following = lay_out(relative, spans, torch.ones_like(real) if padding_counts else real)
    else:
        given = per_axis(position_ids, family.position_axes, rows)
        positions = torch.stack([take_columns(axis, columns, 0) for axis in given])
        following = given.amax(dim=(0, 2)) + 1
        if not all(image.untouched for image in images):
            # The caller's positions, moved by as much as the images' new ones move them.
            new, new_following = lay_out(relative, spans, real)
            dense = [family.image_positions(image.layout)[:, image.slot] for image in images]
            old, old_following = lay_out(dense, [family.image_span(image.layout) for image in images], real)
            positions = positions + new - old
            following = following + new_following - old_following

    return Cut(
        input_ids=short_ids,
        attention_mask=(columns >= 0).long(),
        position_ids=positions[0] if family.position_axes == 1 else positions,
        columns=columns,
        keep=keep,
        following=following,
        padded=padded,
    )


def per_axis(position_ids: Tensor, axes: int, rows: int) -> Tensor:
    """A caller's position ids as `(axes, B, S)`.

    With M-RoPE, transformers passes `(4, B, S)`: a row of text positions before the three axes.

    Raises:
        FoveateError: they have another shape.
    """
    if position_ids.ndim == 2:
        position_ids = position_ids[None].expand(axes, -1, -1)
    if position_ids.ndim != 3 or position_ids.shape[0] not in {axes, axes + 1 if axes == 3 else axes}:
        raise FoveateError(f"position_ids of shape {tuple(position_ids.shape)} don't fit a model with {axes} axes")
    return position_ids[-axes:].expand(-1, rows, -1)
