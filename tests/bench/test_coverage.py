"""How often intervals hold the true value, by simulation: nominal 95 %, for few and many images, alike or not."""

import numpy as np
import pytest

from foveate.bench.statistics import difference_interval, mean_interval

RUNS = 200
LOWEST = 0.88
"""The least share of runs whose interval holds the value; one standard error of 200 runs at 95 % is 1.5 points."""


def outcomes(generator: np.random.Generator, images: int, questions: int, chances: tuple[float, ...], alike: float):
    """Return the outcome of each question and its image.

    Args:
        generator: of random numbers.
        images: how many.
        questions: per image on average; images have from 1 to twice as many.
        chances: of each outcome.
        alike: the correlation of two questions about one image, from 0 to 1.
    """
    sizes = generator.integers(1, 2 * questions, size=images) if questions > 1 else np.ones(images, dtype=int)
    owners = np.repeat(np.arange(images), sizes)
    if alike == 1:
        return generator.choice(len(chances), size=images, p=chances)[owners], owners
    if alike:
        own = generator.dirichlet(np.array(chances) * (1 - alike) / alike, size=images)
    else:
        own = np.tile(chances, (images, 1))
    above = generator.random(len(owners))[:, None] > own.cumsum(axis=1)[owners]
    return np.minimum(above.sum(axis=1), len(chances) - 1), owners


SETTINGS = [(4, 1), (4, 8), (10, 1), (10, 8), (30, 1), (30, 8), (200, 1)]
"""Images, and questions per image."""


@pytest.mark.parametrize(("lost", "won"), [(0.02, 1e-6), (0.1, 1e-6), (0.12, 0.02), (0.1, 0.1), (0.4, 0.05)])
def test_differences(lost: float, won: float) -> None:
    generator = np.random.default_rng(7)
    shares = {}
    for images, questions in SETTINGS:
        for alike in (0.0, 0.2, 1.0) if questions > 1 else (0.0,):
            held, widths = 0, []
            for _ in range(RUNS):
                found, owners = outcomes(generator, images, questions, (lost, won, 1 - lost - won), alike)
                reference = np.where(found == 0, 1.0, np.where(found == 1, 0.0, generator.integers(0, 2, len(found))))
                right = np.where(found == 0, 0.0, np.where(found == 1, 1.0, reference))
                interval = difference_interval(right.tolist(), reference.tolist(), owners.tolist())
                assert interval.low is not None
                assert interval.high is not None
                assert -1 <= interval.low <= interval.value <= interval.high <= 1
                held += interval.low <= won - lost <= interval.high
                widths.append(interval.high - interval.low)
            shares[images, questions, alike] = held / RUNS
            # Nothing is gained by intervals that hold everything.
            textbook = 2 * 1.96 * np.sqrt((lost + won - (won - lost) ** 2) / images)
            assert images < 30 or lost < 0.1 or np.mean(widths) <= 1.3 * textbook
    check(shares)


@pytest.mark.parametrize("share", [0.98, 0.8, 0.5])
def test_shares(share: float) -> None:
    generator = np.random.default_rng(8)
    shares = {}
    for images, questions in SETTINGS:
        for alike in (0.0, 0.2, 1.0) if questions > 1 else (0.0,):
            held = 0
            for _ in range(RUNS):
                found, owners = outcomes(generator, images, questions, (share, 1 - share), alike)
                interval = mean_interval((found == 0).astype(float).tolist(), owners.tolist())
                assert interval.low is not None
                assert interval.high is not None
                held += interval.low <= share <= interval.high
            shares[images, questions, alike] = held / RUNS
    check(shares)


def check(shares: dict[tuple[int, int, float], float]) -> None:
    """Check how often intervals held the value: everywhere nearly as often as they say, and on average at least."""
    assert min(shares.values()) >= LOWEST, shares
    assert 0.95 <= np.mean(list(shares.values())) <= 0.995, shares


@pytest.mark.parametrize("images", [4, 10, 30])
def test_scores_between_right_and_wrong(images: int) -> None:
    """Scores such as an overlap of words: the same intervals hold their mean, and their differences."""
    generator = np.random.default_rng(9)
    held = both = 0
    for _ in range(RUNS):
        ability = generator.normal(0, 0.1, size=images).repeat(5)
        scores = np.clip(generator.beta(3, 2, size=5 * images) * 0.8 + 0.1 + 0.1 * ability, 0, 1)
        lower = np.clip(scores - generator.choice([0.0, 0.3], p=[0.7, 0.3], size=5 * images), 0, 1)
        owners = np.arange(images).repeat(5).tolist()
        mean = mean_interval(scores.tolist(), owners)
        difference = difference_interval(lower.tolist(), scores.tolist(), owners)
        assert mean.low is not None
        assert mean.high is not None
        assert difference.low is not None
        assert difference.high is not None
        held += mean.low <= 0.58 <= mean.high
        both += difference.low <= -0.0895 <= difference.high
    assert held / RUNS >= LOWEST
    assert both / RUNS >= LOWEST
