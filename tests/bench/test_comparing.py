"""Comparisons of finished runs: statistics against cases whose answer is known, and whole folders."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm, ttest_rel

from foveate.bench import Benchmark
from foveate.bench.comparing import (
    agreement,
    benjamini_hochberg,
    bootstrap_interval,
    changes,
    compare,
    holm,
    permutation_probability,
    questions_needed,
    ranks,
    read_results,
)
from foveate.bench.comparing.equal import mixture
from foveate.bench.comparing.hard import split
from foveate.bench.comparing.tables import equal_table, hard_table, main_table, skills_table
from foveate.errors import FoveateError

DRAWS = np.random.default_rng(0)
ONE, OTHER = DRAWS.random(200), DRAWS.random(200) + 0.05
"""Scores of two hundred images with one question each, which differ a little."""


def test_bootstrap_and_permutation_agree_with_the_t_test() -> None:
    found, theirs = bootstrap_interval(list(ONE), list(OTHER), range(200)), ttest_rel(ONE, OTHER)
    ends = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.005)
    assert permutation_probability(list(ONE), list(OTHER), range(200)) == pytest.approx(theirs.pvalue, abs=0.01)


def test_questions_about_one_image_are_drawn_and_exchanged_together() -> None:
    """Ten copies of each question are no more evidence than one."""
    one, other, images = [1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0], range(6)
    alone = permutation_probability(one, other, images)
    assert permutation_probability(one * 10, other * 10, [*images] * 10) == pytest.approx(alone)
    single, tenfold = (bootstrap_interval(one * n, other * n, [*images] * n) for n in (1, 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((single.low, single.high))
    needed = questions_needed(one * 10, other * 10, [*images] * 10)
    assert needed == pytest.approx(10 * (questions_needed(one, other, images) or 0), rel=1e-4)
    # Three of six changed for the better and one for the worse: 2 * (C(4,0) + C(4,1)) / 2^4.
    assert alone == pytest.approx(10 / 16)


def test_nothing_changed() -> None:
    same = [1.0, 0.0, 1.0]
    assert permutation_probability(same, same, range(3)) == 1
    assert bootstrap_interval(same, same, range(3)).high == 0
    assert questions_needed(same, same, range(3)) is None
    assert changes(same, same).probability == 1
    assert bootstrap_interval(same, same, [1, 1, 2]).low is None


def test_the_power_is_the_promised_one() -> None:
    """Runs of as many questions as are needed find the difference in four of five."""
    spread, difference = 0.5, 0.1
    draws = np.random.default_rng(1).normal(0, spread, 4000)
    needed = questions_needed(list(draws), [0.0] * 4000, range(4000), difference)
    assert needed is not None
    assert needed == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * spread**2 / difference**2, rel=0.05)
    runs = np.random.default_rng(2).normal(difference, spread, (1000, needed))
    seen = abs(runs.mean(1)) / (runs.std(1, ddof=1) / math.sqrt(needed)) > norm.ppf(0.975)
    assert seen.mean() == pytest.approx(0.8, abs=0.04)


def test_corrections() -> None:
    given = [0.01, 0.04, 0.03, 0.005]
    assert holm(given) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(given) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def test_ranks_and_their_agreement() -> None:
    found = ranks({"best": [1] * 30, "coin": [1, 0] * 15, "nioc": [0, 1] * 15}, range(30))
    assert (found["best"].value, found["coin"].value, found["best"].first) == (1, 2.5, 1)
    assert (found["coin"].low, found["coin"].high) == (2, 3)
    orders = [{"a": 0.9, "b": 0.5, "c": 0.1}, {"a": 0.1, "b": 0.5, "c": 0.9}]
    assert agreement([orders[0], orders[0]]) == 1
    assert agreement(orders) == -1
    assert agreement(orders[:1]) is None


def test_mixtures_cost_what_is_wanted() -> None:
    costs = {"pool:16": 2.0, "pool:64": 4.0, "dense": 10.0}
    found = mixture(costs, 5.5)
    assert found is not None
    assert (found.small, found.large, found.share) == ("pool:64", "dense", 0.25)
    assert found.scores({"pool:64": [0, 1], "dense": [1, 1]}) == [0.25, 1]
    assert (1 - found.share) * costs[found.small] + found.share * costs[found.large] == 5.5
    assert mixture(costs, 1.0) is None
    assert mixture(costs, 4.0) == mixture({"pool:64": 4.0}, 4.0)


def test_hard_questions() -> None:
    found = split([1, 1, 0, 0, 1], [1, 0, 1, 0, 0.5])
    assert (found.hard, found.easy) == ((1, 4), (0, 2))


@pytest.fixture(scope="module")
def folders(model, processor, task, tmp_path_factory) -> list[Path]:
    out = tmp_path_factory.mktemp("results")
    few = replace(task, pictures=task.pictures[:4])
    specs = [["random:9:seed=1", "random:4:seed=1", "pool:9", "resize:4"], ["random:9:seed=2", "random:4:seed=2"]]
    for number, own in enumerate(specs):
        Benchmark(model, processor, few, own, out / f"run-{number}", longest=2).run()
    other = replace(few, digest="another")
    Benchmark(model, processor, other, ["pool:4"], out / "other", longest=2).run()
    return sorted(out.iterdir())


def test_a_run_is_compared(folders: list[Path]) -> None:
    found = compare(read_results([folders[1]]), correct="holm", hard="resize:4", points=5)
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    rows = {row["spec"]: row for row in metrics["configurations"]}
    assert [row["spec"] for row in found["rows"]] == [name for name in rows if name != "dense"]
    for row in found["rows"]:
        assert row["accuracy"] == rows[row["spec"]]["accuracy"]
        assert row["difference"]["value"] == pytest.approx(rows[row["spec"]]["difference"]["value"])
        assert row["corrected"] >= row["probability"]
    assert set(found["skills"]["pool:9"]) == {each for row in rows.values() for each in row["skills"]}
    assert sum(found["hard"]["questions"].values()) <= found["questions"] == 8
    for cost in ("tokens", "layers", "flops", "time"):
        equal = compare(read_results([folders[1]]), equal=cost)
        # How long a call takes hangs on what else the machine does.
        assert cost == "time" or {row["spec"] for row in equal["equal"]["rows"]} >= {"pool:9"}
        print_all(equal_table(equal))
    print_all(main_table(found), skills_table(found), hard_table(found))


def test_runs_with_other_seeds_are_compared(folders: list[Path]) -> None:
    found = compare(read_results(folders[1:]), against="run-1: random:9:seed=2")
    assert "run-0: random:9:seed=1" in {row["spec"] for row in found["rows"]}
    assert found["agreement"] is None or -1 <= found["agreement"] <= 1


def print_all(*tables: Any) -> None:
    with Path("/dev/null").open("w") as nowhere:
        Console(file=nowhere, width=200).print(*tables)


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ([0, 1], {}, r"other and .*run-0 answer different questions \(scenes, 8 questions, words; scenes, 8"),
        ([1, 1], {}, "given twice"),
        ([1], {"against": "pool:99"}, '--against: no configuration is called "pool:99"'),
        ([1], {"correct": "bonferroni"}, "--correct bonferroni is unknown; correct by holm or bh"),
        ([1], {"equal": "price"}, "--equal price is unknown"),
        ([1], {"hard": "pool:9"}, "--hard pool:9 is no down-sampling"),
    ],
)
def test_comparisons_that_mean_nothing(folders: list[Path], which: Any, options: Any, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        compare(read_results([folders[number] for number in which]), **options)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="holds no finished benchmark"):
        read_results([tmp_path])
