import math

import numpy as np
import pytest
from scipy import stats

from foveate.bench.statistics import difference_interval, mean_interval, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 50])
def test_student_quantile(degrees: int) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def test_a_distribution_without_degrees_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one degree"):
        student_quantile(0.975, 0)


def test_singleton_clusters_are_the_ordinary_standard_error() -> None:
    """With one question per image, the cluster-robust error is the textbook one."""
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    dense = [1.0] * 8
    differences = np.array(right) - 1
    error = differences.std(ddof=1) / math.sqrt(8)
    found = difference_interval(right, dense, range(8))
    assert found.value == -0.5
    assert found.high is not None
    assert found.high - found.value == pytest.approx(student_quantile(0.975, 7) * error)


def test_equal_clusters_are_the_standard_error_of_their_means() -> None:
    generator = np.random.default_rng(0)
    right, dense = generator.integers(0, 2, (2, 60)).astype(float)
    means = (right - dense).reshape(12, 5).mean(axis=1)
    found = difference_interval(right.tolist(), dense.tolist(), np.repeat(np.arange(12), 5).tolist())
    assert found.high is not None
    expected = student_quantile(0.975, 11) * means.std(ddof=1) / math.sqrt(12)
    assert found.high - found.value == pytest.approx(expected)


def test_repeating_a_question_makes_nothing_surer() -> None:
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once = mean_interval(right, range(6))
    twice = mean_interval(right * 2, [*range(6), *range(6)])
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        chance = generator.beta(4, 2, size=40)
        right = (generator.random((40, 6)) < chance[:, None]).astype(float)
        found = mean_interval(right.flatten().tolist(), np.repeat(np.arange(40), 6).tolist())
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 2 / 3 <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_no_certainty_from_sameness() -> None:
    """All right, or never different, doesn't make an interval of no width."""
    everything = mean_interval([1.0] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert everything.low is not None
    assert 0.2 < everything.low < 0.6
    same = difference_interval([1.0] * 10, [1.0] * 10, range(10))
    assert (same.low, same.high) == pytest.approx((-(1 - 0.025**0.1), 1 - 0.025**0.1))


def test_one_image_gives_no_interval() -> None:
    assert mean_interval([1.0, 0.0], "aa").low is None
    assert difference_interval([1.0, 0.0], [1.0, 1.0], "aa").high is None
