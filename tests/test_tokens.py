"""Layouts, keeps, signals, and tokens made by hand."""

import math
from fractions import Fraction

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError, KeepError, SignalError
from foveate.tokens import EncoderAttention, EncoderKeys, Keep, Layout, Segment, Text, VisualTokens, spread

quick = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize("value", [0, -1, "0", "-64", "0.0", 0.0, -0.25, 1.5, "1.0001", math.nan, math.inf, -math.inf])
def test_keeps_that_leave_nothing_or_too_much(value: object) -> None:
    with pytest.raises(KeepError):
        Keep.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["", ".", "many", "1/x", "mean=64.5", "64 tokens", "0x10", "1_0", True, "1e5", "٦٤", "²", "1e-99999999"]
)
def test_what_is_no_keep(value: object) -> None:
    with pytest.raises(KeepError, match="invalid keep"):
        Keep.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "share"), [(None, None), (1, Fraction(1)), (0, None), (None, Fraction(0)), (None, Fraction(1, 3))]
)
def test_a_keep_by_hand_is_checked(tokens: int | None, share: Fraction | None) -> None:
    with pytest.raises(KeepError):
        Keep(tokens, share)


@pytest.mark.parametrize(
    ("keep", "tokens", "count"),
    [
        ("0.0625", 576, 36),
        ("1.0", 576, 576),
        ("1", 576, 1),
        (1, 576, 1),
        (1.0, 576, 576),
        (0.5, 5, 3),  # 2.5: halves go up
        (0.5, 7, 4),
        (0.25, 2, 1),  # 0.5
        (0.1, 576, 58),  # 57.6
        ("0.1", 5, 1),  # 0.5, which a float product may miss
        (0.001, 576, 1),  # at least 1
        (1e-5, 10, 1),
        ("5e-324", 10, 1),
        (576, 576, 576),
    ],
)
def test_counts(keep: float | str, tokens: int, count: int) -> None:
    assert Keep.of(keep).count(tokens) == count


def test_more_than_there_is() -> None:
    with pytest.raises(KeepError, match=r"keep 577 is more than the 576 tokens there are; keep at most 576, or 1\.0"):
        Keep.of(577).count(576)


@quick
@given(st.floats(0, 1, exclude_min=True), st.integers(1, 100_000))
def test_fractions_are_exact(share: float, tokens: int) -> None:
    keep = Keep.of(share)
    assert keep.share == Fraction(repr(share))
    count = keep.count(tokens)
    assert 1 <= count <= tokens
    assert count == 1 or abs(count - keep.share * tokens) <= Fraction(1, 2)
    assert Keep.of(str(keep)) == keep
    assert Keep.of(keep) is keep


@quick
@given(st.integers(1, 10**9))
def test_numbers_of_tokens(tokens: int) -> None:
    keep = Keep.of(tokens)
    assert (keep.tokens, keep.share, str(keep)) == (tokens, None, str(tokens))
    assert Keep.of(str(tokens)) == keep
    assert keep.count(tokens) == tokens


@quick
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 500))
def test_spread_uses_the_budget(weights: list[int], budget: int) -> None:
    parts = spread(budget, weights)
    assert min(parts) >= 1
    assert sum(parts) == budget or (sum(parts) > budget and any(budget * w < sum(weights) for w in weights))


def test_tokens_by_hand() -> None:
    features, attention = torch.randn(2, 6, 4), torch.rand(2, 6)
    tokens = VisualTokens.of(features, (2, 3), encoder_attention=attention, text=torch.randn(2, 5, 4))
    assert tokens.layout == Layout((Segment(1, 2, 3),))
    assert tokens.signals[EncoderAttention(-2)] is attention
    assert tokens.signals[EncoderAttention(7)] is attention
    assert tokens.signals[Text()].shape == (2, 5, 4)
    with pytest.raises(SignalError, match=r"EncoderKeys.*was not captured"):
        tokens.signals[EncoderKeys()]
    assert VisualTokens.of(features, (3, 1, 2)).layout.segments == (Segment(3, 1, 2),)


def test_features_and_grid_must_fit() -> None:
    with pytest.raises(FoveateError, match="don't fit a layout of 9 tokens"):
        VisualTokens.of(torch.randn(2, 6, 4), (3, 3))


def test_wrong_shapes_and_dtypes_are_caught() -> None:
    """Annotations are checked while tests run: this is what the conftest's import hook is for."""
    features = torch.randn(2, 6, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="encoder_attention"):
        VisualTokens.of(features, (2, 3), encoder_attention=torch.rand(2, 5))
    with pytest.raises(jaxtyping.TypeCheckError, match="encoder_attention"):
        VisualTokens.of(features, (2, 3), encoder_attention=torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(jaxtyping.TypeCheckError, match="features"):
        VisualTokens.of(features[0], (2, 3))
