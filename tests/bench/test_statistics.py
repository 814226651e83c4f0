import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foveate.bench.statistics import difference_interval, mean_interval, student_quantile, value_interval


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 50])
def test_student_quantile(degrees: int) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def test_a_distribution_without_degrees_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one degree"):
        student_quantile(0.975, 0)


def test_many_single_questions_have_the_ordinary_standard_error() -> None:
    """With one question per image and many images, the interval is the textbook one, but for one part in a hundred."""
    generator = np.random.default_rng(0)
    right, dense = (generator.random((2, 2000)) < [[0.7], [0.8]]).astype(float)
    error = (right - dense).std(ddof=1) / math.sqrt(2000)
    found = difference_interval(right.tolist(), dense.tolist(), range(2000))
    assert found.high is not None
    assert found.low is not None
    assert found.value == pytest.approx((right - dense).mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.01)
    assert (found.high + found.low) / 2 == pytest.approx(found.value, abs=0.01 * error + 2 * abs(found.value) / 2002)


def test_few_single_questions_are_agresti_and_mins_interval() -> None:
    """(b - c) / (N + 2) -+ t sqrt(b + c + 1 - (b - c)^2 / (N + 2)) / (N + 2), with 4 lost and 1 won of 20."""
    right = [0.0] * 4 + [1.0] + [1.0] * 15
    dense = [1.0] * 4 + [0.0] + [1.0] * 15
    found = difference_interval(right, dense, range(20))
    half = student_quantile(0.975, 19) * math.sqrt(4 + 1 + 1 - 3**2 / 22) / 22
    assert (found.low, found.high) == pytest.approx((-3 / 22 - half, -3 / 22 + half))


def test_a_share_of_single_questions_is_agresti_and_coulls_interval() -> None:
    found = mean_interval([1.0] * 15 + [0.0] * 5, range(20))
    half = student_quantile(0.975, 19) * math.sqrt(17 / 24 * 7 / 24 / 24)
    assert (found.low, found.high) == pytest.approx((17 / 24 - half, 17 / 24 + half))


def test_equal_clusters_are_the_standard_error_of_their_means() -> None:
    """With many clusters that differ more than chance makes them, little of what is added is left."""
    generator = np.random.default_rng(0)
    chance = generator.beta(0.5, 0.5, size=(400, 1))
    right, dense = (generator.random((2, 400, 5)) < [chance, np.full_like(chance, 0.5)]).astype(float)
    means = (right - dense).mean(axis=1)
    found = difference_interval(
        right.flatten().tolist(), dense.flatten().tolist(), np.repeat(np.arange(400), 5).tolist()
    )
    assert found.high is not None
    assert found.low is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * means.std(ddof=1) / 20, rel=0.02)


def test_token_counts_have_the_plain_t_interval() -> None:
    values = np.random.default_rng(0).normal(100, 20, size=(12, 5))
    found = value_interval(values.flatten().tolist(), np.repeat(np.arange(12), 5).tolist())
    assert found.high is not None
    expected = student_quantile(0.975, 11) * values.mean(axis=1).std(ddof=1) / math.sqrt(12)
    assert found.high - found.value == pytest.approx(expected)
    assert value_interval([100.0, 200.0], "ab").low is None


def test_repeating_a_question_makes_nothing_surer() -> None:
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once = mean_interval(right, range(6))
    twice = mean_interval(right * 2, [*range(6), *range(6)])
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_no_certainty_from_sameness() -> None:
    """All right, or never different, doesn't make an interval of no width."""
    everything = mean_interval([1.0] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert everything.low is not None
    assert 0.2 < everything.low < 0.6
    assert everything.high == 1
    same = difference_interval([1.0] * 20, [1.0] * 20, [*range(10)] * 2)
    assert (same.low, same.high) == pytest.approx((-(1 - 0.05**0.1), 1 - 0.05**0.1))
    halves = mean_interval([0.5] * 10, range(10))
    assert halves.low is not None
    assert halves.low < 0.4
    lost = difference_interval([0.0] * 8, [1.0] * 8, range(8))
    assert lost.low == -1
    assert lost.high is not None
    assert -0.9 < lost.high < -0.3


def test_images_of_unequal_sizes_count_by_their_effective_number() -> None:
    """One image with nearly all questions is nearly one image."""
    even = difference_interval([1.0] * 30, [1.0] * 30, np.repeat(np.arange(10), 3).tolist())
    uneven = difference_interval([1.0] * 30, [1.0] * 30, [0] * 21 + [*range(1, 10)])
    assert even.high is not None
    assert uneven.high is not None
    assert uneven.high > 2 * even.high


@pytest.mark.parametrize("images", [1, 2])
def test_one_or_two_images_give_no_interval(images: int) -> None:
    clusters = [number % images for number in range(4)]
    assert mean_interval([1.0, 0.0, 1.0, 1.0], clusters).low is None
    assert difference_interval([1.0, 0.0, 1.0, 1.0], [1.0] * 4, clusters).high is None


@pytest.mark.parametrize("scores", [[], [math.nan, 1.0], [1.5, 0.0], [-0.1, 1.0], [math.inf, 0.0]])
def test_what_is_no_score_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        mean_interval(scores, range(len(scores)))


@given(
    st.lists(
        st.tuples(st.sampled_from((0.0, 1.0, 0.5)) | st.floats(0, 1), st.sampled_from((0.0, 1.0)), st.integers(0, 6)),
        min_size=1,
        max_size=40,
    )
)
def test_intervals_hold_their_value_and_mirror(rows: list[tuple[float, float, int]]) -> None:
    scores, reference, clusters = (list(column) for column in zip(*rows, strict=True))
    for found, mirrored, least in (
        (mean_interval(scores, clusters), mean_interval([1 - score for score in scores], clusters), 0),
        (difference_interval(scores, reference, clusters), difference_interval(reference, scores, clusters), -1),
    ):
        if len({*clusters}) < 3:
            assert found.low is None
            assert found.high is None
            continue
        assert found.low is not None
        assert found.high is not None
        assert least <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high
        assert (mirrored.low, mirrored.high) == pytest.approx((1 + least - found.high, 1 + least - found.low), abs=1e-9)
