"""Cutting a prompt: small cases with every number written out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foveate.engine.columns import take_columns
from foveate.engine.prompt import CompressedImage, cut_prompt
from foveate.errors import FoveateError
from foveate.tokens import Layout, Segment, Structural

GRID = Layout((Segment(1, 2, 3),))
IMAGE = 9


def family(axes: int = 1, counts_padding: bool = False) -> Any:
    grid = torch.stack([torch.zeros(6), torch.arange(6) // 3, torch.arange(6) % 3]).long()
    return SimpleNamespace(
        image_token=IMAGE,
        placeholders=lambda ids: ids == IMAGE,
        position_axes=axes,
        counts_padding=counts_padding,
        image_positions=lambda layout: torch.arange(6)[None] if axes == 1 else grid,
        image_spans=lambda layout: (6,) if axes == 1 else (3,),
    )


def image(kind: Any, *slots: int, pack: bool = False) -> CompressedImage:
    slot = torch.tensor(slots)
    if pack:
        positions = torch.arange(len(slots)).expand(kind.position_axes, -1)
        return CompressedImage(GRID, slot, torch.zeros(len(slots), 4), positions, (len(slots),))
    positions = kind.image_positions(GRID)[:, slot]
    return CompressedImage(
        GRID, slot, torch.zeros(len(slots), 4), positions, kind.image_spans(GRID), own_positions=True
    )


IDS = torch.tensor([[1, 2, *[IMAGE] * 6, 3, 4]])
PAIR = torch.tensor([[1, 2, *[IMAGE] * 6, 3, 4], [0, 0, 0, 0, 0, 0, 0, 5, 6, 7]])
PAIR_MASK = torch.tensor([[1] * 10, [0] * 7 + [1] * 3])


def test_one_row() -> None:
    kind = family()
    cut = cut_prompt(kind, IDS, None, None, [image(kind, 1, 4)])
    assert cut.input_ids.tolist() == [[1, 2, 9, 9, 3, 4]]
    assert cut.columns.tolist() == [[0, 1, 3, 6, 8, 9]]
    assert cut.position_ids.tolist() == [[0, 1, 3, 6, 8, 9]]
    assert cut.attention_mask.tolist() == [[1] * 6]
    assert cut.following.tolist() == [10]
    assert not cut.padded
    assert cut.restore.tolist() == [[0, 1, 1, 2, 2, 2, 3, 3, 4, 5]]


def test_packed() -> None:
    kind = family()
    cut = cut_prompt(kind, IDS, None, None, [image(kind, 1, 4, pack=True)])
    assert cut.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert cut.following.tolist() == [6]
    given = torch.arange(10)[None] + 100
    cut = cut_prompt(kind, IDS, None, given, [image(kind, 1, 4, pack=True)])
    assert cut.position_ids.tolist() == [[100, 101, 102, 103, 104, 105]]
    assert cut.following.tolist() == [106]


def test_three_axes() -> None:
    kind = family(axes=3)
    cut = cut_prompt(kind, IDS, None, None, [image(kind, 1, 4)])
    assert cut.position_ids[:, 0].tolist() == [[0, 1, 2, 2, 5, 6], [0, 1, 2, 3, 5, 6], [0, 1, 3, 3, 5, 6]]
    assert cut.following.tolist() == [7]


def test_padding_goes_and_comes_back_shorter() -> None:
    kind = family()
    cut = cut_prompt(kind, PAIR, PAIR_MASK, None, [image(kind, 0, 5)])
    assert cut.input_ids.tolist() == [[1, 2, 9, 9, 3, 4], [0, 0, 0, 5, 6, 7]]
    assert cut.attention_mask.tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert cut.position_ids[1, 3:].tolist() == [0, 1, 2]
    assert cut.columns[1].tolist() == [-1, -1, -1, 7, 8, 9]
    assert cut.padded
    assert cut.restore[1, 7:].tolist() == [3, 4, 5]


def test_padding_that_counts() -> None:
    kind = family(counts_padding=True)
    cut = cut_prompt(kind, PAIR, PAIR_MASK, None, [image(kind, 0, 5)])
    assert cut.position_ids[1, 3:].tolist() == [7, 8, 9]
    assert cut.following.tolist() == [10, 10]


def test_right_padding() -> None:
    kind = family()
    ids = torch.tensor([[1, *[IMAGE] * 6, 3], [5, 6, 0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1, 1] + [0] * 6])
    cut = cut_prompt(kind, ids, mask, None, [image(kind, 2)])
    assert cut.input_ids.tolist() == [[1, 9, 3], [0, 5, 6]]
    assert cut.restore[1].tolist() == [1, 2, 2, 2, 2, 2, 2, 2]


def test_going_on() -> None:
    kind = family(axes=3)
    cut = cut_prompt(kind, IDS, None, None, [image(kind, 0)], start=torch.tensor([50]))
    assert cut.position_ids[0, 0].tolist() == [50, 51, 52, 55, 56]
    assert cut.following.tolist() == [57]


def test_two_images_side_by_side() -> None:
    kind = family()
    ids = torch.tensor([[*[IMAGE] * 12, 3]])
    cut = cut_prompt(kind, ids, None, None, [image(kind, 1), image(kind, 0, 2)])
    assert cut.columns.tolist() == [[1, 6, 8, 12]]


@pytest.mark.parametrize(
    ("ids", "count", "words"),
    [
        (IDS[:, :7], 1, "holds 5 image placeholders"),
        (IDS, 2, "2 images came with a prompt that has places for 1"),
        (torch.tensor([[IMAGE, IMAGE, IMAGE], [IMAGE, IMAGE, IMAGE]]), 1, "row 0 of the prompt holds 3"),
        (IDS, 0, "holds 6 image placeholders"),
    ],
)
def test_images_that_do_not_fit(ids: torch.Tensor, count: int, words: str) -> None:
    kind = family()
    with pytest.raises(FoveateError, match=words):
        cut_prompt(kind, ids, None, None, [image(kind, 0)] * count)


def test_positions_of_a_strange_shape() -> None:
    kind = family()
    with pytest.raises(FoveateError, match="don't fit"):
        cut_prompt(kind, IDS, None, torch.zeros(5, 1, 10).long(), [image(kind, 0)])


def test_take_columns() -> None:
    values = torch.tensor([[10, 11, 12], [20, 21, 22]])
    assert take_columns(values, torch.tensor([[-1, 2], [0, 1]]), -100).tolist() == [[-100, 12], [20, 21]]


def test_labels_shorter_than_the_prompt() -> None:
    cut = cut_prompt(family(), IDS, None, None, [image(family(), 1, 4)])
    assert cut.take(IDS, -100).tolist() == [[1, 2, 9, 9, 3, 4]]
    with pytest.raises(FoveateError, match="4 values for 10 tokens; labels and token types have one for every token"):
        cut.take(IDS[:, :4], -100)


BREAK = 8
ROWS = Layout((Segment(1, 2, 2),), (Structural(2, 0, 2, is_text=True, between=True),))
"""Two rows of two tokens, and a text token between them."""
TILES = Layout((Segment(1, 1, 2), Segment(1, 1, 3)), runs=(2, 3))
"""Two tiles, and text of the prompt between them."""


def plain(layout: Layout, *slots: int, pack: bool = False) -> CompressedImage:
    """An image on one axis of positions, of which only these columns are left."""
    slot = torch.tensor(slots)
    lengths = layout.run_of[slot].bincount(minlength=len(layout.run_lengths)).tolist()
    positions, spans = layout.within_runs[slot], layout.run_lengths
    if pack:
        positions, spans = torch.cat([torch.arange(length) for length in lengths]), tuple(lengths)
    return CompressedImage(layout, slot, torch.zeros(len(slots), 4), positions[None], spans, own_positions=not pack)


def one_axis() -> Any:
    return SimpleNamespace(
        title="a model",
        image_token=IMAGE,
        placeholders=lambda ids: ids == IMAGE,
        position_axes=1,
        counts_padding=False,
        image_positions=lambda layout: layout.within_runs[None],
        image_spans=lambda layout: layout.run_lengths,
    )


def test_text_between_rows_goes_with_them() -> None:
    ids = torch.tensor([[1, 9, 9, BREAK, 9, 9, 2]])
    cut = cut_prompt(one_axis(), ids, None, None, [plain(ROWS, 1, 2, 4)])
    assert cut.input_ids.tolist() == [[1, 9, BREAK, 9, 2]]
    assert cut.position_ids.tolist() == [[0, 2, 3, 5, 6]]
    assert cut.visual.tolist() == [[False, True, True, True, False]]
    cut = cut_prompt(one_axis(), ids, None, None, [plain(ROWS, 3, pack=True)])
    assert cut.input_ids.tolist() == [[1, 9, 2]]
    assert cut.position_ids.tolist() == [[0, 1, 2]]
    for kept, held in (([0, 1], False), ([2, 3], False), ([1, 3], True)):
        assert ROWS.held(torch.tensor(kept)).tolist() == [held]
    assert ROWS.held_between(2) == (0, 1)
    with pytest.raises(FoveateError, match="the prompt has none at some place"):
        cut_prompt(one_axis(), torch.tensor([[1, 9, 9, 9, 9, 2]]), None, None, [plain(ROWS, 3)])


def test_text_between_the_runs_of_an_image_stays() -> None:
    ids = torch.tensor([[1, 9, 9, 5, 6, 9, 9, 9, 2], [0, 0, 0, 0, 0, 0, 0, 1, 2]])
    mask = torch.tensor([[1] * 9, [0] * 7 + [1] * 2])
    cut = cut_prompt(one_axis(), ids, mask, None, [plain(TILES, 1, 3)])
    assert cut.input_ids.tolist() == [[1, 9, 5, 6, 9, 2], [0, 0, 0, 0, 1, 2]]
    assert cut.position_ids[0].tolist() == [0, 2, 3, 4, 6, 8]
    assert cut.following.tolist() == [9, 2]
    packed = cut_prompt(one_axis(), ids, mask, None, [plain(TILES, 3, 4, pack=True)])
    assert packed.input_ids[0].tolist() == [1, 5, 6, 9, 9, 2]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5]
    given = (mask.cumsum(dim=1) - 1).clamp(min=0) + 100
    moved = cut_prompt(one_axis(), ids, mask, given, [plain(TILES, 3, 4, pack=True)])
    assert moved.position_ids[0].tolist() == [100, 101, 102, 103, 104, 105]
    assert moved.following.tolist() == [106, 102]
