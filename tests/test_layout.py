"""Layouts: what their tokens are, and which newlines and separators stay with them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.layout import Layout, Segment, Structural

quick = settings(deadline=None, max_examples=100)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """One to three grids, cut into tiles: some with newlines behind rows or text between them, some with a separator
    behind them."""
    segments: list[Segment] = []
    structural: list[Structural] = []
    content = 0
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(sum))
        columns = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(sum))
        segment = Segment(1, sum(rows), sum(columns), tuple(rows), tuple(columns))
        kind, first = draw(st.sampled_from(["nothing", "newlines", "between"])), content
        for row in range(segment.h):
            content += segment.w
            if kind == "newlines" or (kind == "between" and row < segment.h - 1):
                between = kind == "between"
                place = content + len(structural)
                structural.append(Structural(place, content - segment.w, content, between, between))
        if draw(st.booleans()):
            structural.append(Structural(content + len(structural), first, content))
        segments.append(segment)
    return Layout(tuple(segments), tuple(structural))


@st.composite
def kept_of(draw: st.DrawFn) -> tuple[Layout, torch.Tensor]:
    layout = draw(layouts())
    kept = draw(st.sets(st.integers(0, layout.content - 1), min_size=1))
    return layout, torch.tensor(sorted(kept))


def test_layouts_count() -> None:
    layout = Layout((Segment(1, 2, 3), Segment(4, 1, 5)), structural=(Structural(6, 0, 6),))
    assert (layout.content, layout.total) == (26, 27)
    assert layout.places.tolist() == [*range(6), *range(7, 27)]


def test_a_grid_of_four_tiles() -> None:
    layout = Layout((Segment(1, 1, 2), Segment(1, 3, 4, rows=(1, 2), columns=(3, 1))))
    assert [(segment.h, segment.w, index.tolist()) for segment, index in layout.tiles] == [
        (1, 2, [0, 1]),
        (1, 3, [2, 3, 4]),
        (1, 1, [5]),
        (2, 3, [6, 7, 8, 10, 11, 12]),
        (2, 1, [9, 13]),
    ]


@given(layouts())
@quick
def test_every_token_is_in_one_tile(layout: Layout) -> None:
    tiles = layout.tiles
    assert torch.equal(torch.cat([index for _, index in tiles]).sort().values, torch.arange(layout.content))
    for segment, index in tiles:
        assert index.shape[0] == segment.count > 0
        assert all(one < other for one, other in pairwise(index.tolist()))


@given(kept_of())
@quick
def test_a_structural_token_stays_with_a_token_that_it_closes(given: tuple[Layout, torch.Tensor]) -> None:
    layout, kept = given
    names = set(kept.tolist())
    expected = [
        any(each.begin <= token < each.end for token in names) and (not each.between or max(names) >= each.end)
        for each in layout.structural
    ]
    assert layout.held(kept).tolist() == expected
    place, source = layout.placed(kept)
    assert all(one < other for one, other in pairwise(place.tolist()))
    run: list[int | Structural | None] = [None] * layout.total
    for each in layout.structural:
        run[each.place] = each
    content = iter(range(layout.content))
    run = [next(content) if each is None else each for each in run]
    stands = [*kept.tolist(), *layout.structural]
    assert [run[each] for each in place.tolist()] == [stands[each] for each in source.tolist()]
    assert len(place) == len(kept) + sum(expected)
    fewest, most = layout.held_between(len(kept))
    assert fewest <= sum(expected) <= most


@pytest.mark.parametrize(
    ("kept", "between"), [(1, (0, 1)), (6, (0, 6)), (7, (1, 6)), (15, (2, 6)), (38, (4, 6)), (54, (6, 6))]
)
def test_newlines_of_a_grid_behind_a_base(kept: int, between: tuple[int, int]) -> None:
    newlines = tuple(Structural(6 + row * 9 + 8, 6 + row * 8, 14 + row * 8) for row in range(6))
    layout = Layout((Segment(1, 2, 3), Segment(1, 6, 8)), newlines)
    assert layout.held_between(kept) == between
